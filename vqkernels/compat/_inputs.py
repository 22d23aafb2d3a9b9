"""Checks of what adapters are called with, beyond what annotations say."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from vqkernels._core.checks import (
    check_floating,
    check_indices,
    check_mask,
    check_same_device,
    check_state,
    is_integer,
)
from vqkernels._core.library import saveable
from vqkernels._core.shown import shape_of, shown


def given_vectors(
    name: str,
    x: torch.Tensor,
    dim: int,
    axis: int,
    like: torch.Tensor,
    *,
    least: int = 1,
) -> torch.Tensor:
    """``x``, which has to be vectors of ``dim`` numbers along a dimension, on the device of a tensor of the module.

    ``least`` is the number of dimensions that there have to be.
    """
    check_floating(name, x)
    check_state(like)
    if x.dim() < least or not -x.dim() <= axis < x.dim() or x.shape[axis] != dim:
        raise ValueError(f"{name}: expected vectors of dim={dim} along dimension {axis}, got shape {shape_of(x)}")
    check_same_device(**{name: x}, module=like)
    return saveable(x)


def check_dtype_of(name: str, x: torch.Tensor, layer: object) -> None:
    """Raise if a layer cannot take this tensor, because it is of another dtype and nobody casts it."""
    check_floating(name, x)
    weight = next(layer.parameters(), None) if isinstance(layer, nn.Module) else None
    if weight is not None:
        check_state(weight)
    if weight is not None and not meet(x, weight):
        raise TypeError(f"{name}: expected {weight.dtype} as that of the projection, got {x.dtype}")


def meet(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a product of them has one dtype, if only because autocast casts them, which leaves float64 alone."""
    kind = x.device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return (casts and torch.float64 not in (x.dtype, weight.dtype)) or x.dtype == weight.dtype


def check_indices_of(name: str, indices: torch.Tensor, like: torch.Tensor, *, least: int = 0) -> None:
    """Raise unless these are indices of ``least`` dimensions or more, on the device of a tensor of the module."""
    check_indices(name, indices)
    if indices.dim() < least:
        raise ValueError(f"{name}: expected at least {least} dimensions, got shape {shape_of(indices)}")
    check_state(like)
    check_same_device(**{name: indices}, module=like)


def check_last(indices: torch.Tensor, num_codebooks: int, kept: bool) -> None:
    """Raise unless indices end in a dimension of codebooks, where that is kept."""
    if kept and indices.shape[-1] != num_codebooks:
        raise ValueError(f"indices: expected [..., {num_codebooks}], got shape {shape_of(indices)}")


def given_mask(name: str, mask: torch.Tensor | None, places: torch.Tensor) -> torch.Tensor | None:
    """The mask, if there is one, which has to have an entry for each place."""
    if mask is None:
        return None
    check_mask(name, mask, tuple(places.shape), "[B, ...]")
    check_same_device(**{name: mask}, x=places)
    return saveable(mask)


def check_map_shape(shape: Sequence[int], codes: torch.Tensor) -> tuple[int, ...]:
    """The sizes of a map, one of them perhaps -1, that has as many entries as there are."""
    sizes = tuple(shape)
    known = [size for size in sizes if size != -1]
    fits = len(sizes) > 1 and len(sizes) - len(known) <= 1 and all(is_integer(size) and size >= 0 for size in known)
    if fits:
        whole, part = codes.numel(), math.prod(known)
        fits = whole == part if len(known) == len(sizes) else part > 0 and whole % part == 0
    if not fits:
        raise ValueError(f"shape: expected that of a map of {codes.numel()} entries, got {shown(sizes)}")
    return sizes
