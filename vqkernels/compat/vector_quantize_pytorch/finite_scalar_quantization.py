"""Finite scalar quantization: every entry of a vector is rounded to one of a few levels (Mentzer et al. 2023)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch

from vqkernels._core.arguments import NonNegative, Share, Size, checked
from vqkernels._core.checks import check_floating, check_size
from vqkernels._core.shown import shown
from vqkernels.compat._inputs import check_dtype_of, check_indices_of, check_last, given_vectors
from vqkernels.compat.vector_quantize_pytorch._tensors import (
    Constants,
    check_levels,
    digits_of,
    every_index,
    full_precision,
    indices_of,
    keeps_codebook_dim,
    project,
    projection,
    radix_basis,
    random_rotation,
    straight_through,
    without_lost,
)


class FSQ(Constants):
    """Bound each entry and round it to one of ``levels[d]`` values in [-1, 1]; the codebook is their product.

    Equivalent, for odd levels and the default arguments, to::

        half = (levels - 1) * 1.001 / 2
        code = (tanh(z) * half).round() / (levels // 2)       # straight-through
        index = ((code * (levels // 2) + levels // 2) * basis).sum(-1)

    Args:
        levels: number of values of each entry; D numbers, at least 3, or 2 with ``preserve_symmetry``.
        dim: size of the vectors; None means ``D * num_codebooks``. Linear layers lead from and to other sizes.
        num_codebooks: parts of a vector that are quantized, and indexed, each by itself.
        keep_num_codebooks_dim: whether indices end in a dimension of codebooks; None means if there are several.
        scale: kept as an attribute, without effect.
        allowed_dtypes: dtypes quantized as they are; others are quantized in float32.
        channel_first: vectors along dimension 1, ``[B, dim, ...]``. Inputs of four or more dimensions always are.
        projection_has_bias: of the linear layers.
        return_indices: False returns None for the indices.
        force_quantization_f32: quantize without autocast and in ``allowed_dtypes``.
        preserve_symmetry: levels evenly spaced from -1 to 1 (Parker et al. 2024) also for even numbers of them.
        noise_dropout: probability that an entry is moved by uniform noise in [-0.5, 0.5] in training; needs
            ``preserve_symmetry``.
        bound_hard_clamp: bound by clamping to [-1, 1] instead of tanh.
        orthogonal_rotation: quantize in a random orthonormal basis.

    Numerics:
        Values are the codes to the bit: :meth:`indices_to_codes` gives what :meth:`forward` gave. A NaN entry stays
        NaN and counts as level 0 in the index. Indices are int32, int64 from 2^31 codes on.

    Raises:
        ValueError: on levels or options that do not fit.

    Example:
        >>> import torch
        >>> from vqkernels.compat.vector_quantize_pytorch import FSQ
        >>> quantizer = FSQ(levels=[8, 5, 5, 5])
        >>> quantized, indices = quantizer(torch.randn(1, 1024, 4))
        >>> torch.equal(quantizer.indices_to_codes(indices), quantized)
        True
    """

    _levels: torch.Tensor
    _basis: torch.Tensor | None
    orthogonal_rot: torch.Tensor | None

    @checked
    def __init__(
        self,
        levels: Sequence[Size],
        dim: Size | None = None,
        num_codebooks: Size = 1,
        keep_num_codebooks_dim: bool | None = None,
        scale: float | None = None,
        allowed_dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
        channel_first: bool = False,
        projection_has_bias: bool = True,
        return_indices: bool = True,
        force_quantization_f32: bool = True,
        preserve_symmetry: bool = False,
        noise_dropout: Share = 0.0,
        bound_hard_clamp: bool = False,
        orthogonal_rotation: bool = False,
    ) -> None:
        super().__init__()
        levels = list(levels)
        check_levels(levels)
        if 2 in levels and not preserve_symmetry:
            raise ValueError(f"levels: expected at least 3 without preserve_symmetry, got {shown(levels)}")
        if noise_dropout > 0 and not preserve_symmetry:
            raise ValueError(f"noise_dropout: expected 0 without preserve_symmetry, got {noise_dropout}")
        if orthogonal_rotation and len(set(levels)) > 1:
            warnings.warn(f"orthogonal_rotation: expected equal levels, got {shown(levels)}", stacklevel=2)
        self.codebook_dim = len(levels)
        self.effective_codebook_dim = self.codebook_dim * num_codebooks
        self.codebook_size = math.prod(levels)
        self.num_codebooks = num_codebooks
        self.keep_num_codebooks_dim = keeps_codebook_dim(keep_num_codebooks_dim, num_codebooks)
        self.dim = self.effective_codebook_dim if dim is None else dim
        check_size("dim", dim=self.dim, codebook_dim=self.effective_codebook_dim)
        self.scale = scale
        self.allowed_dtypes = allowed_dtypes
        self.channel_first = channel_first
        self.return_indices = return_indices
        self.force_quantization_f32 = force_quantization_f32
        self.preserve_symmetry = preserve_symmetry
        self.noise_dropout = noise_dropout
        self.bound_hard_clamp = bound_hard_clamp
        self.orthogonal_rotation = orthogonal_rotation
        self._set_constant("_levels", levels, torch.int32)
        self._set_constant("_basis", radix_basis(levels))
        self.has_projections = self.dim != self.effective_codebook_dim
        inner = self.effective_codebook_dim
        self.project_in = projection(self.dim, inner, self.has_projections, projection_has_bias)
        self.project_out = projection(inner, self.dim, self.has_projections, projection_has_bias)
        self.register_buffer("orthogonal_rot", random_rotation(len(levels)) if orthogonal_rotation else None)

    @property
    def implicit_codebook(self) -> torch.Tensor:  # [K, D]
        """All codes, not rotated, by index; built when asked for."""
        sizes = {"codes": self.codebook_size, "dim": self.codebook_dim}
        return self._indices_to_codes(every_index("levels", self._levels, **sizes))

    @checked
    def bound(
        self,
        z: torch.Tensor,  # [..., D]
        eps: NonNegative = 1e-3,
        hard_clamp: bool = False,
    ) -> torch.Tensor:  # [..., D]
        """Codes of vectors, where an even number of levels has one more below zero than above."""
        z = given_vectors("z", z, self.codebook_dim, -1, self._levels)
        squash, unsquash = _squash(hard_clamp)
        reach = (self._levels - 1) / 2
        # a little past the outer levels, never as far as the next rounding boundary
        half = torch.minimum(reach * (1 + eps), reach + 0.49)
        offset = torch.where(self._levels % 2 == 0, 0.5, 0.0)
        position = squash(z + unsquash(offset / half)) * half - offset
        return straight_through(position.round(), position) / (self._levels // 2)

    @checked
    def symmetry_preserving_bound(
        self,
        z: torch.Tensor,  # [..., D]
        hard_clamp: bool = False,
    ) -> torch.Tensor:  # [..., D]
        """Codes of vectors, where levels are evenly spaced from -1 to 1."""
        z = given_vectors("z", z, self.codebook_dim, -1, self._levels)
        squash, _ = _squash(hard_clamp)
        position = (self._levels - 1) * (squash(z) + 1) / 2
        level = straight_through((position + 0.5).floor(), position)
        return level * (2.0 / (self._levels - 1)) - 1.0

    def quantize(self, z: torch.Tensor) -> torch.Tensor:  # [..., D] -> [..., D]
        """Codes of vectors, straight-through, in the bound that ``preserve_symmetry`` selects."""
        z = given_vectors("z", z, self.codebook_dim, -1, self._levels)
        bound = self.symmetry_preserving_bound if self.preserve_symmetry else self.bound
        return bound(z, hard_clamp=self.bound_hard_clamp)

    def maybe_apply_noise(self, bounded_z: torch.Tensor) -> torch.Tensor:  # [..., D] -> [..., D]
        """In training, move a share ``noise_dropout`` of the entries by uniform noise, within [-1, 1]."""
        check_floating("bounded_z", bounded_z)
        if not self.training or self.noise_dropout == 0:
            return bounded_z
        moved = torch.rand_like(bounded_z) < self.noise_dropout
        noise = torch.rand_like(bounded_z) - 0.5
        return torch.where(moved, bounded_z + noise, bounded_z).clamp(-1, 1)

    def indices_to_level_indices(self, indices: torch.Tensor) -> torch.Tensor:  # [...] -> [..., D]
        """The level of each entry, in ``[0, levels[d])``."""
        check_indices_of("indices", indices, self._levels)
        return digits_of(indices, self._basis, self._levels)

    def codes_to_indices(self, zhat: torch.Tensor) -> torch.Tensor:  # [..., D] -> [...]
        """Indices of codes as they come out, that is, rotated if ``orthogonal_rotation``."""
        zhat = given_vectors("zhat", zhat, self.codebook_dim, -1, self._levels)
        return self._level_codes_to_indices(self._rotate(zhat, inward=True))

    def indices_to_codes(self, indices: torch.Tensor) -> torch.Tensor:  # [...] or [..., C] -> [..., dim]
        """Values of indices, projected and in the layout of the input they came from: the inverse of ``forward``."""
        check_indices_of("indices", indices, self._levels, least=self.channel_first + self.keep_num_codebooks_dim)
        check_last(indices, self.num_codebooks, self.keep_num_codebooks_dim)
        is_image = indices.ndim >= 3 + int(self.keep_num_codebooks_dim)
        codes = self._rotate(self._indices_to_codes(indices), inward=False)
        if self.keep_num_codebooks_dim:
            codes = codes.flatten(-2)
        codes = project(self.project_out, codes)
        return codes.movedim(-1, 1) if is_image or self.channel_first else codes

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Quantize.

        Args:
            z: vectors ``[..., dim]``, or ``[B, dim, ...]`` with ``channel_first`` or from four dimensions on.

        Returns:
            ``(quantized, indices)``: like ``z``, and ``[...]`` or ``[..., num_codebooks]`` int32.

        Raises:
            ValueError: if the vectors are not of size ``dim``.
        """
        check_floating("z", z)
        channel_first = self.channel_first or z.ndim >= 4
        if self.has_projections:
            check_dtype_of("z", z, self.project_in)
        like = self._levels if self.orthogonal_rot is None else self.orthogonal_rot
        z = given_vectors("z", z, self.dim, 1 if channel_first else -1, like)
        z = z.movedim(1, -1) if channel_first else z
        z, kept = self._clean(z)
        dtype = z.dtype
        with full_precision(z, self.force_quantization_f32):
            if self.force_quantization_f32 and dtype not in self.allowed_dtypes:
                z = z.float()
            codes = self.quantize(self._rotate(z.unflatten(-1, (self.num_codebooks, -1)), inward=True))
            # what is lost is NaN, level 0 of its entry
            lost = codes.detach().where(kept.expand_as(z).unflatten(-1, (self.num_codebooks, -1)), torch.nan)
            indices = self._level_codes_to_indices(lost) if self.return_indices else None
            codes = self._rotate(self.maybe_apply_noise(codes), inward=False)
            codes = codes.flatten(-2).to(dtype)
        out = self.project_out(codes).where(kept, torch.nan)
        if indices is not None and not self.keep_num_codebooks_dim:
            indices = indices.squeeze(-1)
        return out.movedim(-1, 1) if channel_first else out, indices

    def _clean(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # [..., dim] -> [..., C * D]
        """Projected vectors, zero where they are lost, and what is kept: ``[..., 1]``, or each entry by itself."""
        if not self.has_projections and self.orthogonal_rot is None:
            kept = ~z.detach().isnan()
            return torch.where(kept, z, 0), kept
        z, finite = without_lost(z)
        z, still = without_lost(self.project_in(z))
        return z, (finite & still)[..., None]

    def _rotate(self, codes: torch.Tensor, inward: bool) -> torch.Tensor:  # [..., D] -> [..., D]
        if self.orthogonal_rot is None:
            return codes
        rotation = self.orthogonal_rot.to(codes.dtype)
        return codes @ (rotation if inward else rotation.T)

    def _scale_and_shift(self, zhat_normalized: torch.Tensor) -> torch.Tensor:  # [..., D] -> [..., D]
        """Codes to levels."""
        if self.preserve_symmetry:
            return (zhat_normalized + 1.0) / (2.0 / (self._levels - 1))
        middle = self._levels // 2
        return zhat_normalized * middle + middle

    def _scale_and_shift_inverse(self, zhat: torch.Tensor) -> torch.Tensor:  # [..., D] -> [..., D]
        """Levels to codes."""
        if self.preserve_symmetry:
            return zhat * (2.0 / (self._levels - 1)) - 1.0
        middle = self._levels // 2
        return (zhat - middle) / middle

    def _level_codes_to_indices(self, codes: torch.Tensor) -> torch.Tensor:  # [..., D] -> [...]
        return indices_of(self._scale_and_shift(codes).round().nan_to_num(), self._basis)

    def _indices_to_codes(self, indices: torch.Tensor) -> torch.Tensor:  # [...] -> [..., D]
        return self._scale_and_shift_inverse(self.indices_to_level_indices(indices))


Map = Callable[[torch.Tensor], torch.Tensor]


def _squash(hard_clamp: bool) -> tuple[Map, Map]:
    """A map onto [-1, 1] and its inverse."""
    if hard_clamp:
        return lambda z: z.clamp(-1, 1), lambda z: z
    return torch.tanh, torch.atanh
