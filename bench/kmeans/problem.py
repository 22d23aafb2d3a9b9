"""What the contestants get."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

_BATCH = 1 << 17


class ClusterProblem(NamedTuple):
    """Vectors, where the centroids start, and how often they move: the same for everybody."""

    x: Any  # [N, D]: a tensor, or a numpy.memmap
    start: torch.Tensor  # [K, D]
    iterations: int

    def part(self, start: int, stop: int) -> torch.Tensor:  # [stop - start, D]
        """Some of the vectors, read if they are not in memory."""
        rows = self.x[start:stop]
        return rows if isinstance(rows, torch.Tensor) else torch.from_numpy(np.array(rows)).to(self.start.device)

    def source(self) -> Any:
        """What ours reads from: on a GPU, a file is read in batches that are sent there."""
        return self.x if isinstance(self.x, torch.Tensor) or self.start.device.type == "cpu" else _Sent(self)

    def array(self) -> np.ndarray:
        """The vectors in memory."""
        return np.asarray(self.x) if isinstance(self.x, np.memmap) else self.x.numpy()


class _Sent:
    """A file as batches on the device of the centroids, any number of times."""

    def __init__(self, problem: ClusterProblem) -> None:
        self.problem = problem

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self.problem.part(start, start + _BATCH) for start in range(0, len(self.problem.x), _BATCH))
