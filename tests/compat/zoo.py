"""One of each adapter, small, with what it takes and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

import vqkernels.compat.vector_quantize_pytorch as vqp
from vqkernels.compat import diffusers, llamagen, taming
from vqkernels.compat.encodec import quantization as codec
from vqkernels.compat.encodec.quantization import core_vq

Shape = tuple[int, ...]
SEQUENCE, IMAGE, SIGNAL = (4, 10, 8), (4, 8, 3, 4), (4, 8, 10)


class Kind(NamedTuple):
    build: Callable[[], nn.Module]
    shape: Shape  # of the input
    options: Mapping[str, Any] = {}  # of a call


def _vq(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(vqp, name)(**options)


ADAPTERS: dict[str, Kind] = {
    "VectorQuantize": Kind(_vq("VectorQuantize", dim=8, codebook_size=16), SEQUENCE),
    "VectorQuantize-projected": Kind(
        _vq("VectorQuantize", dim=8, codebook_size=16, codebook_dim=4, heads=2, threshold_ema_dead_code=2), SEQUENCE
    ),
    "VectorQuantize-layernorm": Kind(
        _vq("VectorQuantize", dim=8, codebook_size=16, codebook_dim=4, layernorm_after_project_in=True), SEQUENCE
    ),
    "VectorQuantize-cosine": Kind(
        _vq("VectorQuantize", dim=8, codebook_size=16, use_cosine_sim=True, codebook_dim=4), SEQUENCE
    ),
    "VectorQuantize-learnable": Kind(
        _vq("VectorQuantize", dim=8, codebook_size=16, learnable_codebook=True, ema_update=False), SEQUENCE
    ),
    "VectorQuantize-affine": Kind(_vq("VectorQuantize", dim=8, codebook_size=16, affine_param=True), SEQUENCE),
    "VectorQuantize-kmeans": Kind(
        _vq("VectorQuantize", dim=8, codebook_size=8, kmeans_init=True, threshold_ema_dead_code=2), SEQUENCE
    ),
    "VectorQuantize-entropy": Kind(
        _vq(
            "VectorQuantize",
            dim=8,
            codebook_size=16,
            codebook_diversity_loss_weight=0.1,
            commitment_use_cross_entropy_loss=True,
        ),
        SEQUENCE,
    ),
    "VectorQuantize-sampled": Kind(
        _vq(
            "VectorQuantize",
            dim=8,
            codebook_size=16,
            stochastic_sample_codes=True,
            straight_through=True,
            sample_codebook_temp=0.5,
        ),
        SEQUENCE,
    ),
    "VectorQuantize-image": Kind(
        _vq("VectorQuantize", dim=8, codebook_size=16, codebook_dim=4, accept_image_fmap=True), IMAGE
    ),
    "ResidualVQ": Kind(_vq("ResidualVQ", dim=8, codebook_size=16, num_quantizers=3), SEQUENCE),
    "ResidualVQ-projected": Kind(
        _vq("ResidualVQ", dim=8, codebook_size=16, num_quantizers=3, codebook_dim=4, quantize_dropout=True), SEQUENCE
    ),
    "ResidualVQ-shared": Kind(
        _vq(
            "ResidualVQ",
            dim=8,
            codebook_size=16,
            num_quantizers=3,
            shared_codebook=True,
            threshold_ema_dead_code=2,
        ),
        SEQUENCE,
    ),
    "ResidualVQ-implicit": Kind(
        _vq("ResidualVQ", dim=8, codebook_size=16, num_quantizers=3, implicit_neural_codebook=True), SEQUENCE
    ),
    "ResidualVQ-diveq": Kind(
        _vq("ResidualVQ", dim=8, codebook_size=16, num_quantizers=3, diveq=True, threshold_ema_dead_code=2), SEQUENCE
    ),
    "GroupedResidualVQ": Kind(
        _vq("GroupedResidualVQ", dim=8, groups=2, codebook_size=16, num_quantizers=2, codebook_dim=2), SEQUENCE
    ),
    "SimVQ": Kind(_vq("SimVQ", dim=8, codebook_size=16), SEQUENCE),
    "ResidualSimVQ": Kind(_vq("ResidualSimVQ", dim=8, codebook_size=16, num_quantizers=2), SEQUENCE),
    "HierarchicalVQ": Kind(
        _vq("HierarchicalVQ", dim=8, codebook_size=8, scales=(1, 2, 3), accept_image_fmap=True), IMAGE
    ),
    "FSQ": Kind(_vq("FSQ", levels=[5] * 8), SEQUENCE),
    "FSQ-projected": Kind(_vq("FSQ", levels=[5, 5, 4], dim=8), SEQUENCE),
    "FSQ-rotated": Kind(_vq("FSQ", levels=[5, 5, 5, 5], dim=8, num_codebooks=2, orthogonal_rotation=True), SEQUENCE),
    "ResidualFSQ": Kind(_vq("ResidualFSQ", levels=[5, 5, 4], dim=8, num_quantizers=2), SEQUENCE),
    "GroupedResidualFSQ": Kind(_vq("GroupedResidualFSQ", levels=[5, 4], dim=8, groups=2, num_quantizers=2), SEQUENCE),
    "LFQ": Kind(_vq("LFQ", dim=8, entropy_loss_weight=0.1, commitment_loss_weight=0.2), SEQUENCE),
    "LFQ-projected": Kind(
        _vq("LFQ", dim=8, codebook_size=16, entropy_loss_weight=0.1, commitment_loss_weight=0.2), SEQUENCE
    ),
    "LFQ-spherical": Kind(
        _vq("LFQ", dim=8, codebook_size=16, spherical=True, cosine_sim_project_in=True, soft_clamp_input_value=2.0),
        IMAGE,
    ),
    "ResidualLFQ": Kind(_vq("ResidualLFQ", dim=8, codebook_size=16, num_quantizers=2), SEQUENCE),
    "GroupedResidualLFQ": Kind(
        _vq("GroupedResidualLFQ", dim=8, groups=2, codebook_size=8, num_quantizers=2), SEQUENCE
    ),
    "LatentQuantize": Kind(_vq("LatentQuantize", levels=[5, 5, 4], dim=8), IMAGE),
    "FSP": Kind(_vq("FSP", levels=[5, 5, 4], dim=8), SEQUENCE),
    "EuclideanCodebook": Kind(lambda: core_vq.EuclideanCodebook(dim=8, codebook_size=16), SEQUENCE),
    "encodec": Kind(lambda: codec.ResidualVectorQuantizer(dimension=8, n_q=3, bins=8), SIGNAL, {"sample_rate": 100}),
    "encodec-projected": Kind(
        lambda: core_vq.ResidualVectorQuantization(num_quantizers=2, dim=8, codebook_size=8, codebook_dim=4),
        SIGNAL,
    ),
    "taming-VectorQuantizer": Kind(lambda: taming.VectorQuantizer(16, 8, 0.25), IMAGE),
    "taming-VectorQuantizer2": Kind(lambda: taming.VectorQuantizer2(16, 8, 0.25), IMAGE),
    "taming-EMAVectorQuantizer": Kind(lambda: taming.EMAVectorQuantizer(16, 8, 0.25), IMAGE),
    "taming-GumbelQuantize": Kind(lambda: taming.GumbelQuantize(8, 6, 16), IMAGE),
    "llamagen": Kind(lambda: llamagen.VectorQuantizer(16, 8, 0.25, 0.1, l2_norm=True, show_usage=True), IMAGE),
    "diffusers": Kind(lambda: diffusers.VectorQuantizer(n_e=16, vq_embed_dim=8, beta=0.25), IMAGE),
}


def make(name: str) -> nn.Module:
    """The same arguments give the same bits."""
    torch.manual_seed(1)
    return ADAPTERS[name].build()


def example(name: str) -> torch.Tensor:
    return torch.randn(ADAPTERS[name].shape)


def call(module: nn.Module, name: str, x: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The quantized vectors, and the sum of the losses."""
    torch.manual_seed(2)
    result = module(x, **ADAPTERS[name].options, **options)
    if name == "encodec":
        return result.quantized, result.penalty
    quantized, *rest = result
    return quantized, sum((part.sum() for part in _floats(rest)), torch.zeros(()))


def _floats(parts: Any) -> list[torch.Tensor]:
    if isinstance(parts, torch.Tensor):
        return [parts] if parts.is_floating_point() and parts.requires_grad else []
    return [t for part in parts for t in _floats(part)] if isinstance(parts, list | tuple) else []
