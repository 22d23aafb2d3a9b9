"""What the scalar quantizers share: gradients past rounding, full precision, projections, mixed-radix indices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self, cast

import torch
from torch import nn
from torch.optim import Optimizer

from vqkernels._core.checks import check_same_device, check_size, check_tensor
from vqkernels._core.recomputation import recomputing
from vqkernels._core.shown import kind_of, shape_of, shown


def straight_through(value: torch.Tensor, carrier: torch.Tensor) -> torch.Tensor:
    """``value`` to the bit, with the gradient of ``carrier``; NaN where the carrier is not finite."""
    return value.detach() + (carrier - carrier.detach())


def full_precision(x: torch.Tensor, wanted: bool = True) -> AbstractContextManager[object]:
    """A scope without autocast on the device of ``x``."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if wanted and torch.amp.is_autocast_available(kind) else nullcontext()


def without_lost(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # [..., D] -> the same, [...] bool
    """Zeros in place of the vectors that are not finite, and which vectors are.

    To be called before and after a projection, which may overflow: a backward would multiply what is lost by zero.
    """
    finite = x.detach().abs().amax(dim=-1) < torch.inf
    return torch.where(finite[..., None], x, 0), finite


def project(layer: Callable[[torch.Tensor], torch.Tensor], codes: torch.Tensor) -> torch.Tensor:
    """Codes through a projection, in the precision of its weight."""
    weight = getattr(layer, "weight", None)
    out: torch.Tensor = layer(codes if weight is None else codes.to(weight.dtype))
    return out


def projection(from_dim: int, to_dim: int, wanted: bool, bias: bool = True) -> nn.Module:
    return nn.Linear(from_dim, to_dim, bias=bias) if wanted else nn.Identity()


def random_rotation(dim: int) -> torch.Tensor:  # [D, D]
    return nn.init.orthogonal_(torch.empty(dim, dim))


def keeps_codebook_dim(keep: bool | None, num_codebooks: int) -> bool:
    """Whether indices end in a dimension of codebooks, which only a single codebook can do without."""
    if keep is False and num_codebooks > 1:
        raise ValueError(f"keep_num_codebooks_dim: expected True for {num_codebooks} codebooks, got False")
    return num_codebooks > 1 if keep is None else keep


def spread_mask(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:  # -> [...]
    """A mask of the vectors ``like [..., D]``: given as it is, flattened, or for the first dimensions only."""
    shape = like.shape[:-1]
    check_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected bool, got {mask.dtype}")
    check_same_device(x=like, mask=mask)
    if tuple(mask.shape) == tuple(shape[: mask.dim()]):
        return mask.reshape(*mask.shape, *(1 for _ in shape[mask.dim() :])).expand(tuple(shape))
    if mask.numel() != math.prod(shape):
        expected = f"one entry for each of the vectors {shown(list(shape))}, or of the first"
        raise ValueError(f"mask: expected {expected}, got {shape_of(mask)}")
    return mask.reshape(tuple(shape))


def check_levels(levels: Sequence[int], least: int = 2) -> None:
    if len(levels) == 0 or min(levels) < least:
        raise ValueError(f"levels: expected one or more numbers of at least {least}, got {shown(levels)}")


def made_optimizer(make: Callable[..., Optimizer] | None, parameters: Iterable[torch.Tensor]) -> Optimizer | None:
    """The optimizer in a module."""
    if make is None:
        return None
    trained = list(parameters)
    if not trained:
        raise ValueError("in_place_codebook_optimizer: expected None for codes without parameters, got one")
    optimizer = make(trained)
    if not all(callable(getattr(optimizer, method, None)) for method in ("step", "zero_grad")):
        name = "in_place_codebook_optimizer"
        raise TypeError(f"{name}: expected a function that makes an optimizer, got {kind_of(optimizer)} of it")
    return optimizer


def check_steps(*, sharded: bool = False) -> None:
    """Raise where the optimizer in a module cannot take its step."""
    where = "with a codebook in shards" if sharded else None
    if recomputing():
        where = "inside a checkpoint"
    elif not torch.is_grad_enabled():
        where = "in training without gradients"
    if where is not None:
        raise NotImplementedError(f"in_place_codebook_optimizer: expected None {where}, got an optimizer")


class Constants(nn.Module):
    """A module with tensors that follow from its options: buffers that are not saved.

    They are made anew wherever it moves, so that one built without data, on the device ``meta``, has them, too.
    """

    def _set_constant(self, name: str, values: Any, dtype: torch.dtype | None = None) -> None:
        """``values`` as nested lists, as a tensor with data, or None."""
        if isinstance(values, torch.Tensor):
            values, dtype = values.tolist(), values.dtype
        self.register_buffer(name, None if values is None else torch.tensor(values, dtype=dtype), persistent=False)
        if values is not None:
            self.__dict__.setdefault("_constants", {})[name] = values, dtype

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        moved = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, (values, dtype) in self.__dict__.get("_constants", {}).items():
            buffer = self._buffers[name]
            assert buffer is not None
            self._buffers[name] = torch.tensor(values, dtype=dtype, device="cpu").to(buffer)
        return cast(Self, moved)


def radix_basis(levels: Sequence[int]) -> torch.Tensor | None:  # [D]
    """Place values of a mixed-radix number, least digit first; None if the largest number does not fit 64 bits.

    int32, as indices have always been, as long as that holds every index; int64 from there on.
    """
    largest = math.prod(levels) - 1
    if largest > torch.iinfo(torch.int64).max:
        return None
    dtype = torch.int32 if largest <= torch.iinfo(torch.int32).max else torch.int64
    return torch.tensor(list(itertools.accumulate([1, *levels[:-1]], int.__mul__)), dtype=dtype, device="cpu")


def indices_of(
    digits: torch.Tensor,  # [..., D] integers, in any dtype
    basis: torch.Tensor | None,  # [D]
) -> torch.Tensor:  # [...]
    """Mixed-radix numbers, in integer arithmetic: float32 would lose digits from 2^24 codes on."""
    basis = _indexable(basis)
    return (digits.to(basis.dtype) * basis).sum(dim=-1, dtype=basis.dtype)


def digits_of(
    indices: torch.Tensor,  # [...]
    basis: torch.Tensor | None,  # [D]
    levels: torch.Tensor,  # [D]
) -> torch.Tensor:  # [..., D]
    return indices[..., None] // _indexable(basis) % levels


def every_index(name: str, like: torch.Tensor, **sizes: int) -> torch.Tensor:  # [K]
    """Indices of all codes, on the device of ``like``: of the first of the sizes of a table of the codes."""
    check_size(name, **sizes)
    return torch.arange(next(iter(sizes.values())), device=like.device)


def _indexable(basis: torch.Tensor | None) -> torch.Tensor:
    if basis is None:
        raise ValueError("levels: expected at most 2**63 codes to index, got more")
    return basis
