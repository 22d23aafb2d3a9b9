"""Names of VQGAN's weights in published files: taming-transformers, LlamaGen, VQModel of diffusers.

The three hold one network. A style says what each calls its parts; sizes are read off the shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from models.networks.vqgan import VQGANConfig

Side = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class Style:
    """What one layout calls the parts; L levels, of which 0 is the one at full resolution."""

    wrapped: str | None  # key of the weights in a file of training
    ignored: tuple[str, ...]  # beginnings of names that are no part of the tokenizer
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


STYLES = {
    "taming": Style(
        wrapped="state_dict",
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
        wrapped="model",
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
        wrapped=None,
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


def read_sizes(style: Style, weights: Mapping[str, torch.Tensor]) -> VQGANConfig:
    """The network that these shapes are of; raises KeyError where a name that it needs is absent."""
    base = weights["encoder.conv_in.weight"].shape[0]
    levels = 1  # names of the encoder do not depend on how many there are
    while f"{style.block('encoder', levels, levels + 1, 0)}.conv1.weight" in weights:
        levels += 1
    blocks = 1
    while f"{style.block('encoder', 0, levels, blocks)}.conv1.weight" in weights:
        blocks += 1
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


def weight_names(style: Style, config: VQGANConfig) -> dict[str, str]:
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
