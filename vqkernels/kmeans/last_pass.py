"""What the pass before found out about every row, and how that spares the next pass most of its work.

Centroids settle one by one: after a few iterations most of them stay where they were, to the last bit. A row then
needs to be compared only with those that moved:

* Its centroid stayed. All others that stayed are as far as before, hence not nearer; the nearest is that centroid or
  one that moved.
* A centroid that moved is nearer now than the row's centroid was. Those that stayed are at least that far: the
  nearest is the nearest of those that moved.
* Else, it is compared with those that stayed, too.

There is no bound to round: a distance has the same bits in every pass, and float32 distances that differ are in the
order of the float64 numbers that decide. A row for which they are equal is looked up among all centroids.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import numpy as np
import torch

from vqkernels.kmeans.bounds import Bounds
from vqkernels.kmeans.data import Chunk, Data
from vqkernels.ops.nearest_code import NearestCode

# below this share of centroids that moved, looking at them first is quicker
_FEW = 0.75

Lookup = Callable[[torch.Tensor, torch.Tensor], NearestCode]  # [n, D], [K, D] -> [n], [n]


class LastPass:
    """Assignment of the rows of this process, in memory if they are, else in a file without a name."""

    def __init__(self, data: Data, passes: int = 1) -> None:  # passes to come
        self.bounds = Bounds(data, passes)
        self.centroids: torch.Tensor | None = None  # [K, D] that all rows were assigned to
        # of the clusters: rows, weights and totals, [K], [bands, K, 1], [bands, K, D] int64
        self.sums: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        self.first = data.first
        # label, and bits of the distance; -1 in both is no cluster, and not a number
        held = data.count if data.source.in_memory else 0
        self.held = torch.full((held, 2), -1, dtype=torch.int32, device=data.device)
        self.file = None if data.source.in_memory else tempfile.TemporaryFile()  # noqa: SIM115, closes with its owner

    def changed(self, centroids: torch.Tensor) -> torch.Tensor | None:  # [K, D] -> [K] bool
        """Which centroids are not what they were; None if that is most of them, or none, or not known."""
        if self.centroids is None:
            return None
        changed = (centroids != self.centroids).any(dim=1)
        return changed if 0 < float(changed.double().mean()) < _FEW else None

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
    changed: torch.Tensor,  # [K] bool: some are not what they were, some are
) -> NearestCode:  # [n], [n]
    """The same as ``lookup(rows, centroids)``."""
    moved = _among(lookup, rows, centroids, changed)
    found, ordered = _nearer(moved, before)
    # the centroid of the row itself is no longer where it was, and none that moved makes up for it
    left = (changed[before.indices] & (found.distance == before.distance)).nonzero()[:, 0]
    if len(left):
        stayed = _among(lookup, rows[left], centroids, ~changed)
        nearer, ordered[left] = _nearer(NearestCode(*(part[left] for part in moved)), stayed)
        found.indices[left], found.distance[left] = nearer
    unclear = (~ordered).nonzero()[:, 0]
    if len(unclear):
        found.indices[unclear], found.distance[unclear] = lookup(rows[unclear], centroids)
    return found


def _among(lookup: Lookup, rows: torch.Tensor, centroids: torch.Tensor, some: torch.Tensor) -> NearestCode:
    """The nearest of some of the centroids, by their numbers among all."""
    which = some.nonzero()[:, 0]
    indices, distance = lookup(rows, centroids[which])
    return NearestCode(which[indices], distance)


def _nearer(
    a: NearestCode, b: NearestCode
) -> tuple[NearestCode, torch.Tensor]:  # [n], [n] each -> the same, [n] bool
    """The nearer one, and whether float32 can tell; if not, or if one is not a number, it is b."""
    first, second = a.distance < b.distance, a.distance > b.distance
    nearer = NearestCode(torch.where(first, a.indices, b.indices), torch.where(first, a.distance, b.distance))
    return nearer, first | second
