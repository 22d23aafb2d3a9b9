"""All communication between processes, and nothing else.

Whether there is anybody to talk to is asked at every training step, so that a module built before the process
group synchronises like any other. Every process calls the same collectives with the same shapes, whatever its
batch holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from vqkernels._core.checks import check_flag, check_floating
from vqkernels._core.devices import widest
from vqkernels._core.shown import shape_of
from vqkernels.ops.code_range import code_range
from vqkernels.ops.code_stats import CodeStats, code_stats
from vqkernels.ops.reanchor import Anchors

_RANK_BITS = 16  # those at the end of a key that are zero
ALONE = "alone"
_members: Any = None  # who is talked to: a group, None for the default one, or ALONE


@contextmanager
def among(members: Any) -> Iterator[None]:
    """Talk to the processes of another group than the default one, or, with :data:`ALONE`, to nobody."""
    global _members
    before, _members = _members, members
    try:
        yield
    finally:
        _members = before


def world() -> tuple[int, int]:
    """Rank of this process and number of processes; ``(0, 1)`` without a process group."""
    if _members is not ALONE and dist.is_available() and dist.is_initialized():
        return dist.get_rank(_members), dist.get_world_size(_members)
    return 0, 1


def everybody() -> Any:
    """The group of all processes; None if this one is alone."""
    if world()[1] == 1:
        return None
    return dist.group.WORLD if _members is None else _members


def sum_of_all(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Sums over all processes with one all-reduce; the same bits in whatever order they are added.

    int64 tensors are added. float32 ones travel as their bits: at every place one process at most may have
    anything but zero.
    """
    if world()[1] == 1:
        return tensors
    integers = [t if t.dtype == torch.int64 else t.contiguous().view(torch.int32).long() for t in tensors]
    dist.all_reduce(fused := torch.cat([t.reshape(-1) for t in integers]), group=_members)
    sums = [part.view_as(t) for part, t in zip(fused.split([t.numel() for t in tensors]), tensors, strict=True)]
    return tuple(
        total if t.dtype == torch.int64 else total.int().view(torch.float32)
        for total, t in zip(sums, tensors, strict=True)
    )


def of_the_first(tensor: torch.Tensor) -> torch.Tensor:
    """What process 0 has, for every process."""
    rank, processes = world()
    if processes == 1:
        return tensor
    # nobody else has anything but zero
    dist.all_reduce(sent := tensor.clone() if rank == 0 else torch.zeros_like(tensor), group=_members)
    return sent


def sum_with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over all processes, with gradient.

    The gradient is that of the sum of all processes' losses: right where gradients are averaged over processes, as
    DistributedDataParallel does.
    """
    return tensor if world()[1] == 1 else _SumWithGradient.apply(tensor, _members)  # type: ignore[no-untyped-call]


class _SumWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, members: Any) -> torch.Tensor:
        ctx.members = members
        summed = tensor.clone()
        dist.all_reduce(summed, group=members)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        summed = gradient.clone()
        dist.all_reduce(summed, group=ctx.members)
        return summed, None


def stats_of_all(
    x: torch.Tensor,  # [N, G, D]
    indices: torch.Tensor,  # [N, G], -1 leaves a vector out
    num_codes: int,
    anchors: Anchors | None = None,
    *,
    synchronised: bool = True,
    backend: str | None = None,
) -> tuple[CodeStats, Anchors]:
    """Statistics over all processes, the same bits however vectors are spread over them; the anchors that win.

    Two all-reduces, whatever there is to tell: ranges and keys, then counts, sums and vectors.
    """
    check_floating("x", x)
    if x.dim() != 3:
        raise ValueError(f"x: expected [N, G, D], got shape {shape_of(x)}")
    check_flag("synchronised", synchronised)
    groups = x.shape[1]
    anchors = (
        Anchors(x.new_zeros(groups, 0, x.shape[2]), x.new_zeros(groups, 0, dtype=widest(x.device)))
        if anchors is None
        else anchors
    )
    if not synchronised or world()[1] == 1:
        return code_stats(x, indices, num_codes, groups=groups, backend=backend), anchors
    anchors, within = elect(anchors, code_range(x, indices, num_codes, groups=groups, backend=backend))
    stats = code_stats(x, indices, num_codes, groups=groups, within=within, backend=backend)
    count, total, vectors = sum_of_all(*stats, anchors.vectors)
    exact = CodeStats(count, total).rounded(within, dtype=torch.float64)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return CodeStats(exact.count.float(), exact.total.to(dtype)), Anchors(vectors, anchors.key)


def elect(anchors: Anchors, found: torch.Tensor) -> tuple[Anchors, torch.Tensor]:  # and [G, K, 4] int64
    """Keep each code's anchor on the process where its key is least (of equal keys, on the lowest rank).

    The vectors come back float32, zero on the other processes. The caller adds them up with :func:`sum_of_all`, in
    one go with whatever else it has to add; the keys are the winning ones everywhere. In the same all-reduce the
    ranges that the processes found (:func:`vqkernels.code_range`) become that of all their vectors.
    """
    rank, processes = world()
    assert processes <= 1 << _RANK_BITS
    # one integer sorts by key, then by rank; its complement sorts the other way
    bid = ~((_in_order(anchors.key.contiguous().view(torch.int64) >> _RANK_BITS) << _RANK_BITS) | rank)
    best, exponents, of_each = _largest_of_all(bid, found[..., :2], _in_own_slot(found[:, 0, 2:]))
    numbers = of_each.sum(dim=0)[:, None].expand(-1, found.shape[1], -1)
    key = (_in_order(~best >> _RANK_BITS) << _RANK_BITS).view(torch.float64)
    won = (bid == best) & key.isfinite()
    return Anchors(torch.where(won[..., None], anchors.vectors.float(), 0), key), torch.cat(
        [exponents, numbers], dim=2
    )


def _largest_of_all(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Elementwise maxima of int64 tensors over all processes, with one all-reduce."""
    fused = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(fused, op=dist.ReduceOp.MAX, group=_members)
    return [part.view_as(t) for part, t in zip(fused.split([t.numel() for t in tensors]), tensors, strict=True)]


def _in_own_slot(numbers: torch.Tensor) -> torch.Tensor:  # [...] int64 -> [processes, ...]
    # the maximum over the processes then tells everybody those of all
    rank, processes = world()
    slots = numbers.new_full((processes, *numbers.shape), torch.iinfo(torch.int64).min)
    slots[rank] = numbers
    return slots


def _in_order(bits: torch.Tensor) -> torch.Tensor:
    """The first 48 bits of float64 numbers as integers that sort like the numbers; its own inverse."""
    return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFF)
