"""What the contestants get."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch


class ClusterProblem(NamedTuple):
    """Vectors, where the centroids start, and how often they move: the same for everybody."""

    x: Any  # [N, D]: a tensor, or a numpy.memmap
    start: torch.Tensor  # [K, D]
    iterations: int

    def part(self, start: int, stop: int) -> torch.Tensor:  # [stop - start, D]
        """Some of the vectors, read if they are not in memory."""
        rows = self.x[start:stop]
        return rows if isinstance(rows, torch.Tensor) else torch.from_numpy(np.array(rows))

    def array(self) -> np.ndarray:
        """The vectors in memory."""
        return np.asarray(self.x) if isinstance(self.x, np.memmap) else self.x.numpy()
