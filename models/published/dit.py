"""Published DiT and SiT, which hold one network. C latent channels, p patch side, L patches, W width."""

from __future__ import annotations

import functools
import math
from typing import Literal

import torch

from models.networks.code_shape import CodeShape
from models.networks.dit import DiTConfig, sincos_2d
from models.priors.diffusion import DDPMConfig, DiffusionConfig, DiffusionPrior, FlowConfig
from models.published.layout import Layout, PublishedPrior, Untold, Weights, count, heads_of, with_kinds

_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # of each published width
_POSITIONS = "pos_embed"  # [1, L, W]
_EMBED = "x_embedder.proj.weight"  # [W, C, p, p]


def _read(
    process: Literal["ddpm", "flow"], weights: Weights, untold: Untold
) -> tuple[PublishedPrior, dict[str, str]]:
    if untold.grid is not None:
        raise ValueError(f"grid: expected none, as the positions tell it, got {untold.grid}")
    width, channels, patch, _ = weights[_EMBED].shape
    weights[_EMBED] = weights[_EMBED].flatten(1)
    side = _side(weights.pop(_POSITIONS), width) * patch
    layers = count(weights, lambda layer: f"blocks.{layer}.attn.qkv.weight")
    outputs = len(weights["final_layer.linear.weight"])
    learned = outputs == 2 * channels * patch**2
    network = DiTConfig(
        layers=layers,
        width=width,
        heads=heads_of(width, _HEADS, untold),
        patch_size=patch,
        mlp_ratio=len(weights["blocks.0.mlp.fc1.weight"]) / width,
        learned_sigma=learned,
    )
    config = DiffusionConfig(
        network=network, process=FlowConfig() if process == "flow" else DDPMConfig(learned_variance=learned)
    )
    num_classes = len(weights["y_embedder.embedding_table.weight"]) - 1
    codes = CodeShape(num_codes=0, grid=(side, side), code_dim=channels, num_classes=num_classes)
    prior = DiffusionPrior(config, channels=channels, grid=codes.grid, num_classes=num_classes)
    return PublishedPrior(config, codes, prior), _names(layers)


LAYOUTS = {
    # what is sampled from is the running mean of the weights
    "dit": Layout(wrapped=("ema",), ignored=(), read=functools.partial(_read, "ddpm")),
    "sit": Layout(wrapped=("ema",), ignored=(), read=functools.partial(_read, "flow")),
}


def _side(positions: torch.Tensor, width: int) -> int:
    """Patches per side of the square that these fixed positions [1, L, W] are of."""
    side = math.isqrt(positions.shape[1])
    if positions.shape != (1, side**2, width):
        raise ValueError(f"{_POSITIONS}: expected shape [1, side^2, {width}], got {list(positions.shape)}")
    # running means of training carry its rounding
    if not torch.allclose(positions[0].float(), sincos_2d(width, side, side), atol=1e-3):
        raise ValueError(f"{_POSITIONS}: expected the fixed sines and cosines of {side} x {side} patches, got others")
    return side


def _names(layers: int) -> dict[str, str]:
    names = {
        "network.embed": "x_embedder.proj",
        "network.time.mlp.0": "t_embedder.mlp.0",
        "network.time.mlp.2": "t_embedder.mlp.2",
        "network.final.output": "final_layer.linear",
        "network.final.modulation.1": "final_layer.adaLN_modulation.1",
    }
    for layer in range(layers):
        ours, theirs = f"network.blocks.{layer}", f"blocks.{layer}"
        names |= {
            f"{ours}.attention.qkv": f"{theirs}.attn.qkv",
            f"{ours}.attention.output": f"{theirs}.attn.proj",
            f"{ours}.mlp.0": f"{theirs}.mlp.fc1",
            f"{ours}.mlp.2": f"{theirs}.mlp.fc2",
            f"{ours}.modulation.1": f"{theirs}.adaLN_modulation.1",
        }
    return with_kinds(names) | {"network.label.table.weight": "y_embedder.embedding_table.weight"}
