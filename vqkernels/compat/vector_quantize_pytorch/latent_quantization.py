"""Latent quantization: each entry takes the nearest of a few scalar values of its own (Hsu et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from vqkernels._core.arguments import OneOf, Size, checked
from vqkernels._core.checks import check_floating, check_same_device, check_shape, check_size
from vqkernels._core.shown import shown
from vqkernels._core.usable import usable_rows
from vqkernels.compat._inputs import check_dtype_of, check_indices_of, check_last, given_vectors
from vqkernels.compat.vector_quantize_pytorch._tensors import (
    Constants,
    check_levels,
    check_steps,
    digits_of,
    every_index,
    full_precision,
    indices_of,
    keeps_codebook_dim,
    made_optimizer,
    project,
    projection,
    radix_basis,
    straight_through,
    without_lost,
)
from vqkernels.nn.rows import mean_or_zero

Reduction = Annotated[str, OneOf(("mean", "sum", "none"))]


class LatentQuantize(Constants):
    """Replace entry d by the nearest of ``levels[d]`` learned scalars.

    Equivalent, without projections, to::

        level = (z[..., None] - values).abs().argmin(-1)      # values [D, L]
        code = values[d, level]                               # straight-through
        loss = quantization_loss_weight * mse(z, code.detach()) + commitment_loss_weight * mse(z.detach(), code)

    Args:
        levels: number of values of each entry; D numbers, or one for all ``codebook_dim`` entries.
        dim: size of the vectors; linear layers lead from and to ``D * num_codebooks`` where that differs.
        commitment_loss_weight: weight of the loss that pulls the values to the vectors.
        quantization_loss_weight: weight of the loss that pulls the vectors to the values.
        num_codebooks: parts of a vector that are quantized, and indexed, each by itself, with the same values.
        codebook_dim: D where ``levels`` is one number.
        keep_num_codebooks_dim: True keeps the dimension of a single codebook in the indices.
        optimize_values: whether the values are parameters.
        in_place_codebook_optimizer: makes an optimizer of the values, which then takes a step in every training
            forward, before the vectors are quantized for good; the loss then does not train them.

    Numerics:
        Values are the scalars to the bit: :meth:`indices_to_codes` gives what :meth:`forward` gave. Of equally near
        values the lower level wins; an entry that is not finite has level 0 and becomes NaN. Indices are int32, int64
        from 2^31 codes on.

    Raises:
        ValueError: on levels or options that do not fit.

    Example:
        >>> import torch
        >>> from vqkernels.compat.vector_quantize_pytorch import LatentQuantize
        >>> quantizer = LatentQuantize(levels=[5, 5, 8], dim=16)
        >>> quantized, indices, loss = quantizer(torch.randn(1, 16, 32, 32))
        >>> quantized.shape, indices.shape
        (torch.Size([1, 16, 32, 32]), torch.Size([1, 32, 32]))
    """

    commitment_loss_weight: torch.Tensor
    quantization_loss_weight: torch.Tensor
    _levels: torch.Tensor
    _basis: torch.Tensor | None
    _fixed_table: torch.Tensor | None

    @checked
    def __init__(
        self,
        levels: Sequence[Size] | Size,
        dim: Size,
        commitment_loss_weight: float | None = 0.1,
        quantization_loss_weight: float | None = 0.1,
        num_codebooks: Size = 1,
        codebook_dim: int = -1,
        keep_num_codebooks_dim: bool | None = None,
        optimize_values: bool | None = True,
        in_place_codebook_optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(levels, int):
            if not 1 <= codebook_dim < 1 << 31:
                raise ValueError(
                    f"codebook_dim: expected at least 1 with a single number of levels, got {shown(codebook_dim)}"
                )
            levels = [levels] * codebook_dim
        levels = list(levels)
        check_levels(levels)
        if codebook_dim > 0 and codebook_dim != len(levels):
            raise ValueError(f"codebook_dim: expected the number of levels, {len(levels)}, got {codebook_dim}")
        if in_place_codebook_optimizer is not None and not optimize_values:
            raise ValueError("in_place_codebook_optimizer: expected None without optimize_values, got an optimizer")
        self.dim = dim
        self.codebook_dim = len(levels)
        self.codebook_size = math.prod(levels)
        self.num_codebooks = num_codebooks
        self.effective_codebook_dim = self.codebook_dim * num_codebooks
        check_size("dim", dim=dim, codebook_dim=self.effective_codebook_dim)
        check_size("levels", levels=max(levels), codebook_dim=self.codebook_dim)
        self.keep_num_codebooks_dim = keeps_codebook_dim(keep_num_codebooks_dim or None, num_codebooks)
        self.has_projections = dim != self.effective_codebook_dim
        for name, weight in (("commitment", commitment_loss_weight), ("quantization", quantization_loss_weight)):
            self._set_constant(f"{name}_loss_weight", float(weight or 0))
        self._set_constant("_levels", levels, torch.int32)
        self._set_constant("_basis", radix_basis(levels))
        self.project_in = projection(dim, self.effective_codebook_dim, self.has_projections)
        self.project_out = projection(self.effective_codebook_dim, dim, self.has_projections)
        values = [_initial_values(level) for level in levels]
        self.values_per_latent = (
            nn.ParameterList(nn.Parameter(torch.tensor(v)) for v in values)
            if optimize_values
            else [*map(torch.tensor, values)]
        )
        most = max(levels)
        padded = [v + [math.inf] * (most - len(v)) for v in values]
        self._set_constant("_fixed_table", None if optimize_values else padded)
        self.in_place_codebook_optimizer = made_optimizer(in_place_codebook_optimizer, self.values_per_latent)

    @property
    def implicit_codebook(self) -> torch.Tensor:  # [K, D]
        """All codes by index; built when asked for."""
        indices = every_index("levels", self._levels, codes=self.codebook_size, dim=self.codebook_dim)
        return self._values(digits_of(indices, self._basis, self._levels))

    @checked
    def quantization_loss(self, z: torch.Tensor, zhat: torch.Tensor, reduce: Reduction = "mean") -> torch.Tensor:
        """Pull ``z`` to ``zhat``."""
        _check_alike(z, zhat)
        return _mean_square(z, zhat.detach(), reduce)

    @checked
    def commitment_loss(self, z: torch.Tensor, zhat: torch.Tensor, reduce: Reduction = "mean") -> torch.Tensor:
        """Pull ``zhat`` to ``z``."""
        _check_alike(z, zhat)
        return _mean_square(zhat, z.detach(), reduce)

    def quantize(self, z: torch.Tensor) -> torch.Tensor:  # [..., D] -> [..., D]
        """The nearest values, straight-through."""
        z = given_vectors("z", z, self.codebook_dim, -1, self._levels)
        return straight_through(self._values(self._nearest(z)), z)

    def codes_to_indices(self, zhat: torch.Tensor) -> torch.Tensor:  # [..., D] -> [...]
        """Indices of the nearest codes."""
        zhat = given_vectors("zhat", zhat, self.codebook_dim, -1, self._levels)
        return indices_of(self._nearest(zhat), self._basis)

    @checked
    def indices_to_codes(
        self,
        indices: torch.Tensor,  # [B, ...] or [B, ..., C]
        project_out: bool = True,
    ) -> torch.Tensor:  # [B, dim, ...]
        """Values of indices, along dimension 1: the inverse of ``forward``."""
        check_indices_of("indices", indices, self._levels, least=1 + self.keep_num_codebooks_dim)
        check_last(indices, self.num_codebooks, self.keep_num_codebooks_dim)
        codes = self._values(digits_of(indices, self._basis, self._levels))
        if self.keep_num_codebooks_dim:
            codes = codes.flatten(-2)
        if project_out:
            codes = project(self.project_out, codes)
        return codes.movedim(-1, 1)

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Quantize; the loss is 0 in evaluation mode.

        Args:
            z: vectors ``[B, dim, ...]``.

        Returns:
            ``(quantized, indices, loss)``: like ``z``; ``[B, ...]`` or ``[B, ..., num_codebooks]``; ``[]``.
        """
        if self.has_projections:
            check_dtype_of("z", z, self.project_in)
        original = given_vectors("z", z, self.dim, 1, self.commitment_loss_weight).movedim(1, -1)
        part = usable_rows(original)
        z, kept = self._clean(original)
        z = z.unflatten(-1, (self.num_codebooks, -1))
        dtype = z.dtype
        with full_precision(z):
            z = z.to(torch.promote_types(dtype, torch.float32))
            if self.training and self.in_place_codebook_optimizer is not None:
                check_steps()
                self._step_in_place(z.detach(), part & usable_rows(z.flatten(-2)))
            level = self._nearest(z).where(kept.expand_as(z.flatten(-2)).unflatten(-1, z.shape[-2:]), 0)
            values = self._values(level)
            if self.in_place_codebook_optimizer is not None:
                values = values.detach()
            indices = indices_of(level, self._basis)
        out = self.project_out(straight_through(values, z).flatten(-2).to(dtype))
        value = out.where(kept, torch.nan)
        loss = torch.zeros_like(self.commitment_loss_weight)
        if self.training:
            # not through the straight-through output, whose gradient would pass the values by
            learned = self.project_out(values.flatten(-2).to(dtype))
            given, out, learned = (t.where(part[..., None], 0) for t in (original, out, learned))
            loss = self.commitment_loss_weight * self.commitment_loss(given, learned)
            loss = loss + self.quantization_loss_weight * self.quantization_loss(given, out)
            # a mean over those that take part
            loss = loss * (part.numel() / part.sum().clamp(min=1))
        return value.movedim(-1, 1), indices if self.keep_num_codebooks_dim else indices.squeeze(-1), loss

    def _table(self) -> torch.Tensor:  # [D, L]
        return _padded(list(self.values_per_latent)) if self._fixed_table is None else self._fixed_table

    def _nearest(self, z: torch.Tensor) -> torch.Tensor:  # [..., D] -> [..., D]
        table = self._table().detach()
        distance = (z.detach()[..., None] - table).abs()
        return torch.where(table.isfinite(), distance, torch.inf).argmin(-1)

    def _values(self, level: torch.Tensor) -> torch.Tensor:  # [..., D] -> [..., D]
        # two kinds of integers index nothing in an ONNX file
        return self._table()[torch.arange(self.codebook_dim, device=level.device), level.long()]

    def _clean(self, original: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # [..., dim]
        """Projected vectors, zero where they are lost, and what is kept: ``[..., 1]``, or each entry by itself."""
        if not self.has_projections:
            kept = original.detach().isfinite()
            return torch.where(kept, original, 0), kept
        clean, finite = without_lost(original)
        z, still = without_lost(self.project_in(clean))
        return z, (finite & still)[..., None]

    def _step_in_place(self, z: torch.Tensor, part: torch.Tensor) -> None:  # [..., C, D], [...]
        assert self.in_place_codebook_optimizer is not None
        with torch.enable_grad():
            values = self._values(self._nearest(z))
            if not values.requires_grad:
                return
            given = z.where(part[..., None, None], values.detach())
            (F.mse_loss(values, given) * (part.numel() / part.sum().clamp(min=1))).backward()
        self.in_place_codebook_optimizer.step()
        self.in_place_codebook_optimizer.zero_grad()


def _mean_square(a: torch.Tensor, b: torch.Tensor, reduce: str) -> torch.Tensor:
    error: torch.Tensor = F.mse_loss(a, b, reduction="none" if reduce == "mean" else reduce)
    return mean_or_zero(error) if reduce == "mean" else error


def _check_alike(z: torch.Tensor, zhat: torch.Tensor) -> None:
    check_floating("z", z)
    check_floating("zhat", zhat)
    check_shape("zhat", zhat, tuple(z.shape), "z.shape")
    check_same_device(z=z, zhat=zhat)


def _initial_values(count: int) -> list[float]:  # [L]
    """Evenly spaced from -0.5, zero among them: up to 0.5 for an odd count, one step short of it for an even one."""
    even = torch.arange(count, device="cpu") / count - 0.5
    values: list[float] = (torch.linspace(-0.5, 0.5, count, device="cpu") if count % 2 else even).tolist()
    return values


def _padded(values: list[Any]) -> torch.Tensor:  # [D, L]
    """Values as rows of one table, which infinities fill up."""
    return pad_sequence(values, batch_first=True, padding_value=math.inf)
