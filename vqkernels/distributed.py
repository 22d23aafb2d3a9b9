"""All communication between processes, and nothing else.

Whether there is anybody to talk to is asked at every training step, so that a module built before the process
group synchronises like any other. Every process calls the same collectives with the same shapes, whatever its
batch holds.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from vqkernels.ops.reanchor import Anchors


def world() -> tuple[int, int]:
    """Rank of this process and number of processes; ``(0, 1)`` without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def all_reduce_sum_(*tensors: torch.Tensor) -> None:
    """Sum float32 tensors over all processes, in place, with one all-reduce."""
    if world()[1] == 1:
        return
    fused = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(fused)
    for tensor, summed in zip(tensors, fused.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))


def elect(anchors: Anchors) -> Anchors:
    """Keep each code's anchor on the process where its key is least (of equal keys, on the lowest rank).

    The vectors come back zero on the other processes. The caller adds them up with :func:`all_reduce_sum_`, in
    one go with whatever else it has to reduce; the keys are the winning ones everywhere.
    """
    rank, processes = world()
    vectors = torch.where(anchors.key.isfinite()[..., None], anchors.vectors, 0)
    if processes == 1:
        return Anchors(vectors, anchors.key)
    # one integer sorts by key, then by rank
    bid = (_in_order(anchors.key.contiguous().view(torch.int32)).long() << 32) | rank
    least = bid.clone()
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    key = _in_order((least >> 32).int()).view(torch.float32)
    return Anchors(torch.where((bid == least)[..., None], vectors, 0), key)


def _in_order(bits: torch.Tensor) -> torch.Tensor:
    """Bits of float32 numbers as integers that sort like the numbers; its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
