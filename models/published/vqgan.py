"""VQGAN in published files: taming-transformers, LlamaGen, VQModel of diffusers, VQGAN-LC.

They hold one network. A style says what each calls its parts; sizes are read off the shapes.
K codes, D code dimension, F features.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from models.networks.vqgan import VQGANConfig
from models.published.layout import Layout, PublishedTokenizer, Untold, Weights, count, with_kinds
from models.tokenizers import build_tokenizer
from models.tokenizers.config import QuantizerConfig

Side = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class Style:
    """What one layout calls the parts; L levels, of which 0 is the one at full resolution."""

    wrapped: tuple[str, ...]  # as of Layout
    ignored: tuple[str, ...]  # as of Layout
    block: Callable[[Side, int, int, int], str]  # side, level, L, number
    attention: Callable[[Side, int, int, int], str]
    resample: Callable[[Side, int, int], str]  # side, level, L
    middle: tuple[str, str, str]  # two residual blocks around attention
    norm: str  # before the last convolution
    shortcut: str  # of a residual block
    attention_parts: tuple[str, str, str, str, str]  # norm, query, key, value, output
    metric: Literal["l2", "cosine"]


def _taming_level(side: Side, level: int, levels: int) -> str:
    return f"{side}.{'down' if side == 'encoder' else 'up'}.{level}"


def _llamagen_level(side: Side, level: int, levels: int) -> str:
    return f"{side}.conv_blocks.{level if side == 'encoder' else levels - 1 - level}"


def _diffusers_level(side: Side, level: int, levels: int) -> str:
    return (
        f"{side}.{'down' if side == 'encoder' else 'up'}_blocks.{level if side == 'encoder' else levels - 1 - level}"
    )


_STYLES = {
    "taming": Style(
        wrapped=("state_dict",),
        ignored=("loss.",),
        block=lambda side, level, levels, n: f"{_taming_level(side, level, levels)}.block.{n}",
        attention=lambda side, level, levels, n: f"{_taming_level(side, level, levels)}.attn.{n}",
        resample=lambda side, level, levels: (
            f"{_taming_level(side, level, levels)}.{'down' if side == 'encoder' else 'up'}sample.conv"
        ),
        middle=("mid.block_1", "mid.attn_1", "mid.block_2"),
        norm="norm_out",
        shortcut="nin_shortcut",
        attention_parts=("norm", "q", "k", "v", "proj_out"),
        metric="l2",
    ),
    "llamagen_vq": Style(
        wrapped=("model",),
        ignored=("quantize.codebook_used",),
        block=lambda side, level, levels, n: f"{_llamagen_level(side, level, levels)}.res.{n}",
        attention=lambda side, level, levels, n: f"{_llamagen_level(side, level, levels)}.attn.{n}",
        resample=lambda side, level, levels: (
            f"{_llamagen_level(side, level, levels)}.{'down' if side == 'encoder' else 'up'}sample.conv"
        ),
        middle=("mid.0", "mid.1", "mid.2"),
        norm="norm_out",
        shortcut="nin_shortcut",
        attention_parts=("norm", "q", "k", "v", "proj_out"),
        metric="cosine",
    ),
    "diffusers_vq": Style(
        wrapped=(),
        ignored=(),
        block=lambda side, level, levels, n: f"{_diffusers_level(side, level, levels)}.resnets.{n}",
        attention=lambda side, level, levels, n: f"{_diffusers_level(side, level, levels)}.attentions.{n}",
        resample=lambda side, level, levels: (
            f"{_diffusers_level(side, level, levels)}.{'down' if side == 'encoder' else 'up'}samplers.0.conv"
        ),
        middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
        norm="conv_norm_out",
        shortcut="conv_shortcut",
        attention_parts=("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
        metric="l2",
    ),
}


def _sizes(style: Style, weights: Weights) -> VQGANConfig:
    """The network that these shapes are of."""
    base = weights["encoder.conv_in.weight"].shape[0]
    # names of the encoder do not depend on how many levels there are
    levels = count(weights, lambda level: f"{style.block('encoder', level, level + 1, 0)}.conv1.weight")
    blocks = count(weights, lambda number: f"{style.block('encoder', 0, levels, number)}.conv1.weight")
    norm = style.attention_parts[0]
    widths = [weights[f"{style.block('encoder', n, levels, 0)}.conv1.weight"].shape[0] for n in range(levels)]
    if any(width % base for width in widths):
        raise ValueError(f"encoder: expected widths that are multiples of {base}, got {widths}")
    return VQGANConfig(
        base_channels=base,
        multipliers=tuple(width // base for width in widths),
        res_blocks=blocks,
        attention_levels=tuple(
            n for n in range(levels) if f"{style.attention('encoder', n, levels, 0)}.{norm}.weight" in weights
        ),
        latent_channels=weights["encoder.conv_out.weight"].shape[0],
    )


def _weight_names(style: Style, config: VQGANConfig) -> dict[str, str]:
    """Our name of every weight of encoder and decoder -> theirs."""
    names: dict[str, str] = {}

    def put(ours: str, theirs: str) -> None:
        for kind in ("weight", "bias"):
            names[f"{ours}.{kind}"] = f"{theirs}.{kind}"

    def put_block(ours: str, theirs: str, *, shortcut: bool) -> None:
        for part in ("norm1", "conv1", "norm2", "conv2"):
            put(f"{ours}.{part}", f"{theirs}.{part}")
        if shortcut:
            put(f"{ours}.shortcut", f"{theirs}.{style.shortcut}")

    def put_attention(ours: str, theirs: str) -> None:
        for part, name in zip(("norm", "query", "key", "value", "output"), style.attention_parts, strict=True):
            put(f"{ours}.{part}", f"{theirs}.{name}")

    levels = len(config.multipliers)
    sides: tuple[Side, Side] = ("encoder", "decoder")
    for side in sides:
        order = list(range(levels)) if side == "encoder" else list(reversed(range(levels)))
        blocks = config.res_blocks + (side == "decoder")
        before = 1 if side == "encoder" else config.multipliers[-1]
        for place, level in enumerate(order):
            stride = 2 if level in config.attention_levels else 1
            for number in range(blocks):
                ours = f"{side}.levels.{place}"
                grows = number == 0 and before != config.multipliers[level]
                put_block(f"{ours}.{number * stride}", style.block(side, level, levels, number), shortcut=grows)
                if stride == 2:
                    put_attention(f"{ours}.{number * 2 + 1}", style.attention(side, level, levels, number))
            before = config.multipliers[level]
            if place < levels - 1:
                put(f"{side}.levels.{place}.{blocks * stride}.conv", style.resample(side, level, levels))
        put_block(f"{side}.middle.0", f"{side}.{style.middle[0]}", shortcut=False)
        put_attention(f"{side}.middle.1", f"{side}.{style.middle[1]}")
        put_block(f"{side}.middle.2", f"{side}.{style.middle[2]}", shortcut=False)
        put(f"{side}.input", f"{side}.conv_in")
        put(f"{side}.norm", f"{side}.{style.norm}")
        put(f"{side}.output", f"{side}.conv_out")
    put("encoder.to_code", "quant_conv")
    put("decoder.from_code", "post_quant_conv")
    return names


# VQGAN-LC's file: taming's network, trained beside a discriminator and LPIPS
_LC = dataclasses.replace(
    _STYLES["taming"], wrapped=("state_dict", "model"), ignored=("discriminator.", "perceptual_loss.")
)


def _read(style: Style, weights: Weights, untold: Untold) -> tuple[PublishedTokenizer, dict[str, str]]:
    """A codebook that is looked up as it is."""
    network, codes = _sizes(style, weights), "quantize.embedding.weight"
    num_codes, code_dim = weights[codes].shape
    for name, tensor in weights.items():
        if tensor.dim() == 2:  # the codes as [1, K, D]; other linear layers over positions are 1x1 convolutions
            weights[name] = tensor.unsqueeze(0) if name == codes else tensor[:, :, None, None]
    # of training: VQGAN's term for the encoder weighs 1 and that for the codes 0.25
    quantizer = QuantizerConfig(
        codebook="learned",
        num_codes=num_codes,
        code_dim=code_dim,
        metric=style.metric,
        commitment_weight=1.0,
        codebook_weight=0.25,
    )
    names = _weight_names(style, network) | {"quantizer.table.weight": codes}
    return PublishedTokenizer(network, quantizer, build_tokenizer(network, quantizer)), names


def _read_lc(weights: Weights, untold: Untold) -> tuple[PublishedTokenizer, dict[str, str]]:
    """Frozen features [K, F] behind a projector, one layer or two."""
    network, features = _sizes(_LC, weights), weights["tok_embeddings.weight"]
    deep = "codebook_projection.2.weight" in weights
    layers = {"quantizer.table.projector": "codebook_projection.2" if deep else "codebook_projection"}
    if deep:
        layers["quantizer.table.hidden"] = "codebook_projection.0"
    code_dim = len(weights[layers["quantizer.table.projector"] + ".weight"])
    if code_dim == 768:
        raise ValueError("code_dim: expected another than 768, whose vectors the released code normalizes, got 768")
    quantizer = QuantizerConfig(
        codebook="frozen",
        num_codes=len(features),
        code_dim=code_dim,
        commitment_weight=1.0,
        codebook_weight=0.33,
        features="published",
        projector="mlp" if deep else "linear",
    )
    names = _weight_names(_LC, network) | {"quantizer.table.features": "tok_embeddings.weight"} | with_kinds(layers)
    return PublishedTokenizer(network, quantizer, build_tokenizer(network, quantizer, features)), names


LAYOUTS = {
    name: Layout(style.wrapped, style.ignored, functools.partial(_read, style)) for name, style in _STYLES.items()
} | {"vqgan_lc": Layout(_LC.wrapped, _LC.ignored, _read_lc)}
