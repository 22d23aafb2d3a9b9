"""``HierarchicalVQ``: the residual of a map quantized at growing resolutions (VAR, Tian et al. 2024)."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from vqkernels._core.arguments import Share, Size, Threshold, Times, checked
from vqkernels._core.checks import check_shape, check_size
from vqkernels._core.shown import shape_of
from vqkernels.compat._inputs import check_dtype_of, check_indices_of, given_mask, given_vectors
from vqkernels.compat.vector_quantize_pytorch._residual import shared_seed
from vqkernels.compat.vector_quantize_pytorch._rows import lens_to_mask
from vqkernels.compat.vector_quantize_pytorch.vector_quantize_pytorch import VectorQuantize
from vqkernels.nn.rows import without_unusable

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS: tuple[Callable[..., torch.Tensor], ...] = (
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
)
_MODES = ("linear", "bilinear", "trilinear")


class _Phi(nn.Module):
    """A share of a convolution mixed into a map that was made larger."""

    def __init__(self, dim: int, spatial_dims: int, resi_ratio: float) -> None:
        super().__init__()
        self.conv = _CONVOLUTIONS[spatial_dims - 1](dim, dim, 3, padding=1)
        self.resi_ratio = float(abs(resi_ratio))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # what autocast makes of a convolution is of another dtype
        return x if self.resi_ratio <= 1e-8 else torch.lerp(x, self.conv(x).to(x.dtype), self.resi_ratio)


class HierarchicalVQ(nn.Module):
    """``HierarchicalVQ`` of vector-quantize-pytorch: same arguments, results and state dict.

    Args:
        dim: size of the vectors.
        codebook_size: K, or one for each level.
        scales: size of the map at each level, not falling: a number for all axes, or one for each.
        shared_codebook: one codebook for all levels.
        channel_first: vectors along dimension 1, or along the last one.
        sync_codebook, decay, commitment_weight, rotation_trick, kmeans_init, kmeans_iters, threshold_ema_dead_code:
            as in :class:`VectorQuantize`.
        stochastic_sample_codes, sample_codebook_temp: as in :class:`VectorQuantize`.
        orthogonal_reg_weight, orthogonal_reg_max_codes, orthogonal_reg_active_codes_only: as in
            :class:`VectorQuantize`.
        quant_resi: share of the convolution after a map is made larger.
        share_quant_resi: number of convolutions; 0 means one for each level.
        nested_dropout: probability that a training step is reconstructed from the first levels alone.
        nested_dropout_min_levels: at least so many.
        accept_image_fmap, accept_3d_fmap: maps of two or three axes; of one without either.

    Raises:
        ValueError: on arguments that do not fit.

    Example:
        >>> import torch
        >>> from vqkernels.compat.vector_quantize_pytorch import HierarchicalVQ
        >>> quantizer = HierarchicalVQ(dim=8, codebook_size=32, scales=(1, 2, 4), accept_image_fmap=True)
        >>> quantized, indices, loss = quantizer(torch.randn(2, 8, 4, 4))
        >>> [list(index.shape) for index in indices]
        [[2, 1, 1], [2, 2, 2], [2, 4, 4]]
    """

    @checked
    def __init__(
        self,
        *,
        dim: Size,
        codebook_size: Size | Sequence[Size],
        scales: Sequence[Size | Sequence[Size]],
        shared_codebook: bool = True,
        channel_first: bool = True,
        sync_codebook: bool | None = None,
        decay: Share = 0.99,
        commitment_weight: float = 1.0,
        rotation_trick: bool = False,
        kmeans_init: bool = True,
        kmeans_iters: Times = 10,
        threshold_ema_dead_code: Threshold = 2,
        stochastic_sample_codes: bool = False,
        sample_codebook_temp: float = 0.1,
        orthogonal_reg_weight: float = 0.0,
        orthogonal_reg_max_codes: Size | None = 128,
        orthogonal_reg_active_codes_only: bool = False,
        quant_resi: float = 0.5,
        share_quant_resi: int = 1,
        nested_dropout: Share = 0.0,
        nested_dropout_min_levels: Size = 1,
        accept_image_fmap: bool = False,
        accept_3d_fmap: bool = False,
    ) -> None:
        super().__init__()
        axes = 2 if accept_image_fmap else 3 if accept_3d_fmap else 1
        shapes = tuple(_level_shape("scales", scale, axes) for scale in scales)
        levels = len(shapes)
        for shape in shapes:
            check_size("scales", dim=dim, cells=math.prod(shape))
        sizes = (codebook_size,) * levels if isinstance(codebook_size, int) else tuple(codebook_size)
        growing = all(a <= b for pair in itertools.pairwise(shapes) for a, b in zip(*pair, strict=True))
        for name, expected, fits in (
            ("accept_image_fmap, accept_3d_fmap", "at most one of them", not (accept_image_fmap and accept_3d_fmap)),
            ("scales", "one or more sizes that do not fall", levels > 0 and growing),
            ("codebook_size", f"{levels} sizes", len(sizes) == levels),
            ("codebook_size", "one size with shared_codebook", not shared_codebook or len(set(sizes)) == 1),
        ):
            if not fits:
                raise ValueError(f"{name}: expected {expected}, got others")
        self.dim, self.spatial_dims, self.channel_first = dim, axes, channel_first
        self.scales, self.level_shapes, self.num_levels = tuple(scales), shapes, levels
        self.codebook_sizes = sizes
        self.nested_dropout, self.nested_dropout_min_levels = nested_dropout, nested_dropout_min_levels

        def quantizer(size: int) -> VectorQuantize:
            return VectorQuantize(
                dim,
                size,
                decay=decay,
                commitment_weight=commitment_weight,
                rotation_trick=rotation_trick,
                kmeans_init=kmeans_init,
                kmeans_iters=kmeans_iters,
                threshold_ema_dead_code=threshold_ema_dead_code,
                stochastic_sample_codes=stochastic_sample_codes,
                sample_codebook_temp=sample_codebook_temp,
                orthogonal_reg_weight=orthogonal_reg_weight,
                orthogonal_reg_max_codes=orthogonal_reg_max_codes,
                orthogonal_reg_active_codes_only=orthogonal_reg_active_codes_only,
                sync_codebook=sync_codebook,
            )

        self.vq = quantizer(sizes[0]) if shared_codebook else None
        self.vqs = None if shared_codebook else nn.ModuleList(map(quantizer, sizes))
        maps = levels if share_quant_resi <= 0 else min(levels, share_quant_resi)
        self.phi_shared = _Phi(dim, axes, quant_resi) if share_quant_resi == 1 else None
        self.phi_levels = (
            None if share_quant_resi == 1 else nn.ModuleList(_Phi(dim, axes, quant_resi) for _ in range(maps))
        )

    def get_vq(self, level_index: int) -> VectorQuantize:
        vq = self.vq if self.vqs is None else self.vqs[level_index]
        assert isinstance(vq, VectorQuantize)
        return vq

    def choose_phi(self, level_index: int) -> nn.Module:
        if self.phi_levels is None:
            assert self.phi_shared is not None
            return self.phi_shared
        share = level_index / max(self.num_levels - 1, 1)
        return self.phi_levels[round(share * (len(self.phi_levels) - 1))]

    @checked
    def forward(
        self,
        x: torch.Tensor,  # [B, dim, ...] or [B, ..., dim]
        indices: Any = None,
        mask: torch.Tensor | None = None,  # [B, ...] bool
        lens: torch.Tensor | None = None,  # [B]
        sample_codebook_temp: float | None = None,
        return_cutoff: bool = False,
    ) -> tuple[object, ...]:
        """``(quantized, indices of every level, loss)``, with ``return_cutoff`` the last level kept, or None."""
        if indices is not None:
            raise NotImplementedError("indices: expected None; get_output_from_indices decodes, got indices")
        like = self.get_vq(0)._codebook.cluster_size
        x = given_vectors("x", x, self.dim, 1 if self.channel_first else -1, like, least=self.spatial_dims + 2)
        if x.dim() != self.spatial_dims + 2 or not math.prod(x.shape[1:]):
            raise ValueError(f"x: expected a map of {self.spatial_dims} axes, got shape {shape_of(x)}")
        check_dtype_of("x", x, self.choose_phi(0))
        x = x if self.channel_first else x.movedim(-1, 1)
        full = x.shape[2:]
        if lens is not None:
            if mask is not None or self.spatial_dims != 1:
                raise ValueError("lens: expected without mask and for one axis only, got otherwise")
            mask = lens_to_mask(lens, x, 2)
        mask = given_mask("mask", mask, x[:, 0])

        # a vector that takes no part is no part of a mean
        last, usable = without_unusable(x.movedim(1, -1))
        residual, quantized = last.movedim(-1, 1), torch.zeros_like(x)
        pooled = usable if mask is None else usable & mask
        partial, columns, losses = [], [], []
        for level, shape in enumerate(self.level_shapes):
            small, some = self._pooled(residual, shape, pooled)
            if mask is None:
                small = small.where(some[:, None], torch.nan)
            value, index, loss = self.get_vq(level)(
                small.movedim(1, -1).flatten(1, -2),
                mask=None if mask is None else some.flatten(1),
                sample_codebook_temp=sample_codebook_temp,
            )
            value = self._enlarged(value.movedim(-1, 1).unflatten(2, shape), full, level)
            quantized, residual = quantized + value, residual - value
            partial.append(quantized)
            columns.append(index.unflatten(1, shape))
            losses.append(loss)
        cutoff = self._cutoff(x.device)
        kept = self.num_levels if cutoff is None else cutoff + 1
        quantized = partial[kept - 1] if mask is None else partial[kept - 1].where(mask[:, None], 0)
        quantized = quantized if self.channel_first else quantized.movedim(1, -1)
        result = (quantized, tuple(columns), torch.stack(losses[:kept]).mean())
        return (*result, cutoff) if return_cutoff else result

    @checked
    def get_output_from_indices(
        self, indices: Sequence[torch.Tensor], full_shape: Size | Sequence[Size] | None = None
    ) -> torch.Tensor:
        """The map that the indices of all levels stand for, at ``full_shape``, by default that of the last level."""
        if len(indices) != self.num_levels:
            raise ValueError(f"indices: expected {self.num_levels} levels, got {len(indices)}")
        name = "full_shape"
        full = self.level_shapes[-1] if full_shape is None else _level_shape(name, full_shape, self.spatial_dims)
        check_size(name, dim=self.dim, cells=math.prod(full))
        for level, index in enumerate(indices):
            check_indices_of(f"indices[{level}]", index, self.get_vq(level)._codebook.cluster_size)
            check_shape(f"indices[{level}]", index, (*indices[0].shape[:1], *self.level_shapes[level]), "[B, ...]")
        values = (self.get_vq(level).get_output_from_indices(index) for level, index in enumerate(indices))
        maps = [self._enlarged(value.movedim(-1, 1), full, level) for level, value in enumerate(values)]
        total = torch.stack(maps).sum(dim=0)
        return total if self.channel_first else total.movedim(1, -1)

    def _pooled(
        self, x: torch.Tensor, shape: tuple[int, ...], mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Means over the valid positions of every cell, and the cells that have any."""
        pool = _POOLS[self.spatial_dims - 1]
        weight = mask[:, None].to(x.dtype)
        share = pool(weight, shape)
        return pool(x.where(mask[:, None], 0), shape) / share.clamp(min=1e-6), share[:, 0] > 0

    def _enlarged(self, x: torch.Tensor, full: Sequence[int], level: int) -> torch.Tensor:
        if tuple(x.shape[2:]) != tuple(full):
            x = F.interpolate(x, size=tuple(full), mode=_MODES[self.spatial_dims - 1], align_corners=False)
        enlarged: torch.Tensor = self.choose_phi(level)(x)
        return enlarged

    def _cutoff(self, device: torch.device) -> int | None:
        """The last level this step keeps; None keeps all."""
        least = self.nested_dropout_min_levels
        if not self.training or self.nested_dropout <= 0 or least >= self.num_levels:
            return None
        draw = random.Random(shared_seed(device))
        return None if draw.random() >= self.nested_dropout else draw.randrange(least - 1, self.num_levels - 1)


def _level_shape(name: str, scale: int | Sequence[int], axes: int) -> tuple[int, ...]:
    shape = (scale,) * axes if isinstance(scale, int) else tuple(scale)
    if len(shape) != axes:
        raise ValueError(f"{name}: expected {axes} sizes, got {len(shape)}")
    return shape
