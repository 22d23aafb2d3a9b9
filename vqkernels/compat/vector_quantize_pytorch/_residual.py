"""Stacks of quantizers, each of what the ones before left over, and stacks side by side."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from vqkernels._core.checks import (
    check_index_values,
    check_indices,
    check_integer,
    check_same_device,
    check_shape,
    check_size,
    each_of,
)
from vqkernels.compat._inputs import check_dtype_of, given_vectors
from vqkernels.compat.vector_quantize_pytorch._tensors import (
    Constants,
    full_precision,
    project,
    projection,
    spread_mask,
    without_lost,
)
from vqkernels.distributed import sum_of_all


def shared_seed(device: torch.device) -> int:
    """A random number that is the same on all processes."""
    seed = torch.randint(0, 10_000, (), device=device)
    return int(sum_of_all(seed)[0])


class DepthDropout:
    """In training, leave out the layers after a random one.

    Args:
        layers: number of layers.
        wanted: whether to.
        cutoff: index of the first layer that can be the last to run, at least 0.
        multiple_of: the number of layers that run is rounded up to a multiple of it.
    """

    def __init__(self, layers: int, wanted: bool, cutoff: int, multiple_of: int) -> None:
        name = "quantize_dropout_cutoff_index"
        check_integer(name, cutoff, 0)
        check_integer("quantize_dropout_multiple_of", multiple_of, 1)
        if wanted and layers > 1 and cutoff >= layers:
            raise ValueError(f"{name}: expected less than num_quantizers={layers}, got {cutoff}")
        self.layers, self.wanted, self.cutoff, self.multiple_of = layers, wanted and layers > 1, cutoff, multiple_of

    def is_active(self, training: bool) -> bool:
        return self.wanted and training and torch.is_grad_enabled()

    def depth(self, seed: int) -> int:
        """How many layers run."""
        least = random.Random(seed).randrange(self.cutoff, self.layers) + 1
        return min(self.layers, math.ceil(least / self.multiple_of) * self.multiple_of)

    def of_all_layers(self, indices: torch.Tensor) -> torch.Tensor:  # [..., q] -> [..., Q]
        """Indices with -1 for the layers that were left out."""
        check_indices("indices", indices)
        given = indices.shape[-1] if indices.dim() else 0
        if given > self.layers or (given < self.layers and not self.wanted):
            fewer = "at most " if self.wanted else ""
            raise ValueError(f"indices: expected [..., Q] with Q {fewer}{self.layers}, got Q = {given}")
        return F.pad(indices, (0, self.layers - given), value=-1)


def of_groups(indices: Any, groups: int) -> list[torch.Tensor]:  # [G, ...] -> G of [...]
    """The indices of every group, from one tensor or a list of them."""
    if isinstance(indices, torch.Tensor):
        check_indices("indices", indices)
        given = list(indices) if indices.dim() else []
    else:
        given = list(each_of("indices", indices))
    if len(given) != groups:
        raise ValueError(f"indices: expected those of {groups} groups, got {len(given)}")
    return given


def of_layers(
    indices: torch.Tensor | Sequence[torch.Tensor],  # [B, ..., Q], or B of [..., Q]
    places: torch.Tensor,  # [B, ...]
    sizes: Sequence[int],
) -> torch.Tensor:  # [B, ..., Q]
    """The indices of every layer at every place."""
    if not isinstance(indices, torch.Tensor):
        for number, index in enumerate(indices):
            check_indices(f"indices[{number}]", index)
            check_shape(f"indices[{number}]", index, (*places.shape[1:], len(sizes)), "[..., Q]")
            check_same_device(**{f"indices[{number}]": index}, x=places)
        # of no batch there is nothing to stack
        indices = torch.stack(list(indices)) if len(indices) else places.new_zeros(0, dtype=torch.int64)
    check_indices("indices", indices)
    check_shape("indices", indices, (*places.shape, len(sizes)), "[B, ..., Q]")
    check_same_device(indices=indices, x=places)
    for column, size in zip(indices.unbind(-1), sizes, strict=True):
        check_index_values("indices", column, size)
    if bool((indices == -1).any()):
        raise ValueError("indices: expected those of an evaluation, without dropped quantizers, got -1")
    return indices


def per_layer(
    columns: list[torch.Tensor],  # q of [...]
    losses: list[torch.Tensor],  # q of []
    layers: int,
) -> tuple[torch.Tensor, torch.Tensor]:  # [..., Q], [Q]
    """Indices and losses by layer; -1 and 0 for those that did not run."""
    missing = layers - len(columns)
    return F.pad(torch.stack(columns, dim=-1), (0, missing), value=-1), F.pad(torch.stack(losses), (0, missing))


class DroppingStack(Constants):
    """Layers of which a training step may leave out the last ones."""

    def _set_dropout(self, dropout: DepthDropout) -> None:
        self._dropout = dropout
        self.num_quantizers, self.quantize_dropout = dropout.layers, dropout.wanted
        self.quantize_dropout_cutoff_index = dropout.cutoff
        self.quantize_dropout_multiple_of = dropout.multiple_of

    def _depth(self, active: bool, seed: int | None, device: torch.device) -> int:
        """How many layers run: all, or as many as the seed says; without one, as a draw that all processes share."""
        if not active:
            return self.num_quantizers
        return self._dropout.depth(shared_seed(device) if seed is None else seed)


class ResidualStack(DroppingStack):
    """Layers with implicit codebooks, one after the other, between two projections; vectors along the last dimension.

    A subclass fills ``layers`` and says what one of them does.
    """

    layers: Any  # nn.ModuleList, whose elements have no more precise type than Module

    def __init__(self, dim: int, codebook_dim: int, dropout: DepthDropout) -> None:
        super().__init__()
        self.has_projections = codebook_dim != dim
        check_size("dim", dim=dim, codebook_dim=codebook_dim)
        self.dim = dim
        self.project_in = projection(dim, codebook_dim, self.has_projections)
        self.project_out = projection(codebook_dim, dim, self.has_projections)
        self.layers = nn.ModuleList()
        self._set_dropout(dropout)

    def _bound(self, x: torch.Tensor) -> torch.Tensor:  # [1, N, D] -> [1, N, D]
        return x

    def _encode_layer(
        self,
        number: int,
        residual: torch.Tensor,  # [1, N, D]
        mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # [1, N, D], [1, N], []
        raise NotImplementedError

    def _decode_layer(self, number: int, indices: torch.Tensor) -> torch.Tensor:  # [1, N] -> [1, N, D]
        raise NotImplementedError

    def _encode(
        self,
        x: torch.Tensor,  # [..., dim]
        mask: torch.Tensor | None,
        seed: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # [..., dim], [..., Q], [Q]
        if self.has_projections:
            check_dtype_of("x", x, self.project_in)
        # flattened as the vectors are
        mask = None if mask is None else spread_mask(mask, x).reshape(1, -1)
        if self.has_projections:
            x, finite = without_lost(x)
            kept = finite[..., None]
            x = self.project_in(x)
        else:
            # every entry by itself
            kept = ~x.detach().isnan()
            x = torch.where(kept, x, 0)
        depth = self._depth(self._dropout.is_active(self.training), seed, x.device)
        with full_precision(x):
            # one exact chain of residuals, whatever the precision around it
            rows = x.reshape(1, -1, x.shape[-1])
            residual = self._bound(rows.to(torch.promote_types(x.dtype, torch.float32)))
            # for the layers to see, and for no backward to touch
            residual = residual.where(kept.reshape(1, -1, kept.shape[-1]), torch.nan)
            quantized = torch.zeros_like(residual)
            indices, losses = [], []
            for number in range(depth):
                code, index, loss = self._encode_layer(number, residual, mask)
                residual = residual - code.detach()
                quantized = quantized + code
                indices.append(index.reshape(x.shape[:-1]))
                losses.append(loss)
        quantized = quantized.to(x.dtype).reshape(x.shape)
        if self.has_projections:
            quantized, finite = without_lost(quantized)
            quantized = self.project_out(quantized).where(finite[..., None], torch.nan)
        return quantized, *per_layer(indices, losses, self.num_quantizers)

    def _decode(self, indices: torch.Tensor) -> torch.Tensor:  # [..., up to Q] -> [Q, ..., D]
        """Each layer's share of the output before it is projected; zero for -1 and for layers that are not given."""
        codes = []
        for number, index in enumerate(self._dropout.of_all_layers(indices).unbind(-1)):
            code = self._decode_layer(number, index.reshape(1, -1).clamp(min=0))
            code = code.reshape(*index.shape, code.shape[-1])
            codes.append(torch.where(index[..., None] < 0, 0.0, code))
        return torch.stack(codes)

    def _output(self, codes: torch.Tensor) -> torch.Tensor:  # [Q, ..., D] -> [..., dim]
        # in the order of the layers, as they were added up when quantizing
        total = torch.zeros_like(codes[0])
        for code in codes:
            total = total + code
        return project(self.project_out, total)


class SideBySide(nn.Module):
    """Residual quantizers of equal parts of the vectors."""

    rvqs: Any  # nn.ModuleList

    def __init__(self, dim: int, groups: int, accept_image_fmap: bool) -> None:
        super().__init__()
        if dim % groups:
            raise ValueError(f"groups: expected a divisor of dim={dim}, got {groups}")
        self.dim, self.groups, self.accept_image_fmap = dim, groups, accept_image_fmap
        self.rvqs = nn.ModuleList()

    @property
    def codebooks(self) -> torch.Tensor:  # [G, Q, K, D]
        """All codes of all layers; built when asked for."""
        return torch.stack([rvq.codebooks for rvq in self.rvqs])

    @property
    def split_dim(self) -> int:
        return 1 if self.accept_image_fmap else -1

    def get_codes_from_indices(self, indices: Iterable[torch.Tensor]) -> torch.Tensor:  # [G, ...] -> [G, Q, ..., D]
        """Each layer's share of the output of each group."""
        given = of_groups(indices, self.groups)
        return torch.stack([rvq.get_codes_from_indices(i) for rvq, i in zip(self.rvqs, given, strict=True)])

    def get_output_from_indices(self, indices: Iterable[torch.Tensor]) -> torch.Tensor:  # [G, ...] -> [..., dim]
        """What ``forward`` gave with these indices."""
        given = of_groups(indices, self.groups)
        parts = [rvq.get_output_from_indices(i) for rvq, i in zip(self.rvqs, given, strict=True)]
        return torch.cat(parts, dim=self.split_dim)

    def _outputs(self, x: torch.Tensor, **options: Any) -> list[tuple[Any, ...]]:
        """For each kind of result, what the groups returned; all groups drop the same layers."""
        x = given_vectors("x", x, self.dim, self.split_dim, next(self.buffers()), least=2)
        if self.rvqs[0]._dropout.is_active(self.training):
            options["rand_quantize_dropout_fixed_seed"] = shared_seed(x.device)
        parts = x.chunk(self.groups, dim=self.split_dim)
        return list(zip(*(rvq(part, **options) for rvq, part in zip(self.rvqs, parts, strict=True)), strict=True))
