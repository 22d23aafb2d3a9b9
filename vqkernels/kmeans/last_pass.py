"""What the pass before found out about every row, and how that spares the next pass most of its work.

Centroids settle one by one: after a few iterations most of them stay where they were, to the last bit. A row then
needs to be compared only with those that moved:

* Its centroid stayed. All others that stayed are as far as before, hence not nearer; the nearest is that centroid or
  one that moved.
* A centroid that moved is nearer now than the row's centroid was. Those that stayed are at least that far: the
  nearest is the nearest of those that moved.
* Else, or if float32 distances are equal and cannot tell, the row is compared with all.

There is no bound to round: a distance has the same bits in every pass, and float32 distances that differ are in the
order of the float64 numbers that decide.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import numpy as np
import torch

from vqkernels.kmeans.data import Chunk, Data
from vqkernels.ops.nearest_code import NearestCode

# below this share of centroids that moved, looking at them first is quicker
_FEW = 0.5

Lookup = Callable[[torch.Tensor, torch.Tensor], NearestCode]  # [n, D], [K, D] -> [n], [n]


class LastPass:
    """Assignment of the rows of this process, in memory if they are, else in a file without a name."""

    def __init__(self, data: Data) -> None:
        self.centroids: torch.Tensor | None = None  # [K, D] that all rows were assigned to
        self.sums: tuple[torch.Tensor, torch.Tensor] | None = None  # [K], [K, D] int64 of the clusters
        self.first = data.first
        # label, and bits of the distance; -1 in both is no cluster, and not a number
        held = data.count if data.source.in_memory else 0
        self.held = torch.full((held, 2), -1, dtype=torch.int32, device=data.device)
        self.file = None if data.source.in_memory else tempfile.TemporaryFile()  # noqa: SIM115, closes with its owner

    def changed(self, centroids: torch.Tensor) -> torch.Tensor | None:  # [K, D] -> [K] bool
        """Which centroids are not what they were; None if most of them, or if that is not known."""
        if self.centroids is None:
            return None
        changed = (centroids != self.centroids).any(dim=1)
        return changed if float(changed.double().mean()) < _FEW else None

    def read(self, chunk: Chunk) -> NearestCode:  # [n], [n]
        """What some rows were assigned to; index -1 and distance NaN in the first pass."""
        start, stop = self._place(chunk)
        if self.file is None:
            both = self.held[start:stop]
        else:
            self.file.seek(8 * start)
            kept = self.file.read(8 * (stop - start)).ljust(8 * (stop - start), b"\xff")
            both = torch.tensor(np.frombuffer(kept, dtype=np.int32), device=self.held.device).view(-1, 2)
        return NearestCode(both[:, 0].long(), both[:, 1].contiguous().view(torch.float32))

    def write(self, chunk: Chunk, found: NearestCode) -> None:
        start, stop = self._place(chunk)
        both = torch.stack([found.indices.int(), found.distance.view(torch.int32)], dim=1)
        if self.file is None:
            self.held[start:stop] = both
        else:
            self.file.seek(8 * start)
            self.file.write(both.cpu().numpy().tobytes())

    def _place(self, chunk: Chunk) -> tuple[int, int]:
        start = chunk.first - self.first
        return start, start + len(chunk.rows)


def reassign(
    lookup: Lookup,
    rows: torch.Tensor,  # [n, D]
    before: NearestCode,  # [n], [n] in the centroids before
    centroids: torch.Tensor,  # [K, D]
    changed: torch.Tensor,  # [K] bool: the centroids that are not what they were
) -> NearestCode:  # [n], [n]
    """The same as ``lookup(rows, centroids)``."""
    which = changed.nonzero()[:, 0]
    nearest = lookup(rows, centroids[which])
    nearer = nearest.distance < before.distance
    indices = torch.where(nearer, which[nearest.indices], before.indices)
    distance = torch.where(nearer, nearest.distance, before.distance)
    farther = nearest.distance > before.distance
    open_ = (~(nearer | farther & ~changed[before.indices])).nonzero()[:, 0]
    if len(open_):
        indices[open_], distance[open_] = lookup(rows[open_], centroids)
    return NearestCode(indices, distance)
