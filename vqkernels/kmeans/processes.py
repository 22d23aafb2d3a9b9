"""The processes of a group, or this one alone: what they tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


def check_group(group: object) -> None:
    if group is not None and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise TypeError(f"group: expected None or a torch.distributed process group, got {type(group).__name__}")


@dataclass(frozen=True)
class Processes:
    """A ``torch.distributed`` group, or None: everything is then said to oneself."""

    group: Any = None

    @property
    def rank(self) -> int:
        return 0 if self.group is None else dist.get_rank(self.group)

    @property
    def size(self) -> int:
        return 1 if self.group is None else dist.get_world_size(self.group)

    def add_(self, *tensors: torch.Tensor) -> None:
        """Sum int64 tensors over all processes, in place, with one all-reduce."""
        self._reduce(dist.ReduceOp.SUM, *tensors)

    def largest_(self, *tensors: torch.Tensor) -> None:
        """The same with elementwise maxima."""
        self._reduce(dist.ReduceOp.MAX, *tensors)

    def of_each(self, value: int, device: torch.device) -> list[int]:
        """An integer of every process, by rank."""
        slots = torch.zeros(self.size, dtype=torch.int64, device=device)
        slots[self.rank] = value
        self.add_(slots)
        numbers: list[int] = slots.tolist()
        return numbers

    def whoever_has(self, rows: torch.Tensor) -> torch.Tensor:  # [n, D] float32
        """Rows that one process has, and all others have as zeros; to the bit."""
        bits = rows.contiguous().view(torch.int32).long()
        self.add_(bits)
        return bits.int().view(torch.float32)

    def concatenate(self, rows: torch.Tensor) -> torch.Tensor:  # [n of this rank, ...] -> [n of all, ...]
        """Rows of all processes, by rank; all of one dtype. Minus zero becomes zero."""
        if self.group is None:
            return rows + 0
        lengths = self.of_each(len(rows), rows.device)
        start = sum(lengths[: self.rank])
        everyone = rows.new_zeros(sum(lengths), *rows.shape[1:])
        everyone[start : start + len(rows)] = rows
        # nobody else has anything but zero there
        dist.all_reduce(everyone, group=self.group)
        return everyone

    def _reduce(self, operation: Any, *tensors: torch.Tensor) -> None:
        if self.group is None:
            return
        fused = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(fused, op=operation, group=self.group)
        for tensor, reduced in zip(tensors, fused.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(reduced.view_as(tensor))
