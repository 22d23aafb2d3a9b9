"""MGVQ's published files: a DC-AE in the names of EfficientViT, groups of codes in one table.

S stages, full resolution first; G groups, K codes of each, d channels of a group.
"""

from __future__ import annotations

from models.networks.dcae import DCAEConfig
from models.published.layout import Layout, PublishedTokenizer, Untold, Weights, with_kinds
from models.tokenizers import build_tokenizer
from models.tokenizers.config import QuantizerConfig

_CODES = "quantize.embedding.weight"  # [GK, d]
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def _read(weights: Weights, untold: Untold) -> tuple[PublishedTokenizer, dict[str, str]]:
    network = _sizes(weights)
    code_dim, groups = len(weights["quant_conv.weight"]), network.conv_groups
    if len(weights[_CODES]) % groups:
        raise ValueError(f"{_CODES}: expected as many rows for each of {groups} groups, got {len(weights[_CODES])}")
    weights[_CODES] = weights[_CODES].unflatten(0, (groups, -1))  # [G, K, d]
    # the released files were finetuned without masks, which are therefore off
    quantizer = QuantizerConfig(
        codebook="online",
        num_codes=weights[_CODES].shape[1],
        groups=groups,
        code_dim=code_dim,
        metric="cosine",
        anchor="probabilistic",
        commitment_weight=0.25,
        codebook_weight=1.0,
    )
    return PublishedTokenizer(network, quantizer, build_tokenizer(network, quantizer)), weight_names(network)


LAYOUT = Layout(wrapped=("model",), ignored=("quantize.codebook_used",), read=_read)


def weight_names(config: DCAEConfig) -> dict[str, str]:
    """Our name of every weight -> theirs."""
    codes = {"quantizer.table.weight": _CODES, "quantizer.table.usage": "quantize.embed_prob"}
    return _encoder_names(config) | _decoder_names(config) | codes


def _block(side: str, stage: int, place: int) -> str:
    return f"{side}.stages.{stage}.op_list.{place}"


def _sizes(weights: Weights) -> DCAEConfig:
    """The network that these shapes are of."""
    found = [int(name.split(".")[2]) for name in weights if name.startswith("encoder.stages.")]
    if not found:
        raise KeyError(_block("encoder", 1, 0))
    stages = 1 + max(found)
    widths, depths = [], {"encoder": [0] * stages, "decoder": [0] * stages}
    conv_stages = stages
    for stage in range(stages):
        for side, numbers in depths.items():
            first = int(f"{_block(side, stage, 0)}.main.conv.conv.weight" in weights)  # the decoder doubles first
            while _width(weights, _block(side, stage, first + numbers[stage])) is not None:
                numbers[stage] += 1
        widths.append(_width(weights, _block("encoder", stage, 0)) or 0)
        if f"{_block('encoder', stage, 0)}.context_module.main.qkv.conv.weight" in weights:
            conv_stages = min(conv_stages, stage)
    if stages > 1 and not widths[0]:
        widths[0] = widths[1] // 2  # nothing is left of a stage without blocks; 128 before 256 in the released code
    mixed = weights["quant_conv.weight"]  # [D, D/G, 1, 1]
    return DCAEConfig(
        widths=tuple(widths),
        encoder_depths=tuple(depths["encoder"]),
        decoder_depths=tuple(depths["decoder"]),
        conv_stages=conv_stages,
        conv_groups=mixed.shape[0] // mixed.shape[1],
    )


def _width(weights: Weights, block: str) -> int | None:
    """Channels of a block, None where there is none."""
    convolution = weights.get(f"{block}.main.conv1.conv.weight")
    attention = weights.get(f"{block}.context_module.main.qkv.conv.weight")
    if convolution is not None:
        return convolution.shape[0]
    return None if attention is None else attention.shape[1]


def _block_names(ours: str, theirs: str, config: DCAEConfig, stage: int, *, batch_norm: bool) -> dict[str, str]:
    if stage < config.conv_stages:
        names = with_kinds(
            {f"{ours}.conv1": f"{theirs}.main.conv1.conv", f"{ours}.norm": f"{theirs}.main.conv2.norm"}
        )
        if batch_norm:
            names |= with_kinds({f"{ours}.norm": f"{theirs}.main.conv2.norm"}, _RUNNING)
        return names | {f"{ours}.conv2.weight": f"{theirs}.main.conv2.conv.weight"}
    attention, gated = f"{theirs}.context_module.main", f"{theirs}.local_module.main"
    layers = {
        f"{ours}.0.norm": f"{attention}.proj.norm",
        f"{ours}.1.widen": f"{gated}.inverted_conv.conv",
        f"{ours}.1.mix": f"{gated}.depth_conv.conv",
        f"{ours}.1.norm": f"{gated}.point_conv.norm",
    }
    without_bias = {
        f"{ours}.0.qkv": f"{attention}.qkv.conv",
        f"{ours}.0.output": f"{attention}.proj.conv",
        f"{ours}.1.narrow": f"{gated}.point_conv.conv",
    }
    return with_kinds(layers) | with_kinds(without_bias, ("weight",))


def _encoder_names(config: DCAEConfig) -> dict[str, str]:
    half = config.encoder_depths[0] == 0
    layers = {
        "encoder.input" + (".conv" if half else ""): "encoder.project_in.conv" + (".conv" if half else ""),
        "encoder.output": "encoder.project_out.main.op_list.0.conv",
        "encoder.to_code": "quant_conv",
    }
    blocks: dict[str, str] = {}
    number = 0
    for stage, depth in enumerate(config.encoder_depths):
        if stage > 0 and (stage > 1 or not half):
            before = _block("encoder", stage - 1, config.encoder_depths[stage - 1])
            layers[f"encoder.blocks.{number}.conv"] = f"{before}.main.conv.conv"
            number += 1
        for place in range(depth):
            theirs = _block("encoder", stage, place)
            blocks |= _block_names(f"encoder.blocks.{number}", theirs, config, stage, batch_norm=False)
            number += 1
    return with_kinds(layers) | blocks


def _decoder_names(config: DCAEConfig) -> dict[str, str]:
    half = config.decoder_depths[0] == 0
    layers = {
        "decoder.from_code": "post_quant_conv",
        "decoder.input": "decoder.project_in.main.conv",
        "decoder.norm": "decoder.project_out.op_list.0",
        "decoder.output": "decoder.project_out.op_list.2.conv" + (".conv" if half else ""),
    }
    blocks: dict[str, str] = {}
    number = 0
    for stage in reversed(range(len(config.widths))):
        depth = config.decoder_depths[stage]
        doubles = int(stage < len(config.widths) - 1 and depth > 0)
        if doubles:
            layers[f"decoder.blocks.{number}.conv"] = f"{_block('decoder', stage, 0)}.main.conv.conv"
        for place in range(doubles, doubles + depth):
            theirs = _block("decoder", stage, place)
            blocks |= _block_names(f"decoder.blocks.{number + place}", theirs, config, stage, batch_norm=True)
        number += doubles + depth
    return with_kinds(layers) | blocks
