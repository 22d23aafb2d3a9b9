"""What one pass over the rows finds out, as integers that add up over chunks and processes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from typing import NamedTuple

import torch

from vqkernels.kmeans.data import Chunk, Data
from vqkernels.kmeans.processes import Processes
from vqkernels.kmeans.sums import exact_bins, rounded_sum, weighted
from vqkernels.ops.code_stats import CodeStats

_LAST = (1 << 32) - 1


class Totals(NamedTuple):
    """A finished pass over all rows of all processes."""

    count: torch.Tensor  # type: ignore[assignment]  # [K] float64, weight per cluster
    total: torch.Tensor  # [K, D] float64, weighted sum per cluster
    inertia: float
    moved: int  # rows whose cluster is not that of the pass before
    farthest: Farthest


class Farthest:
    """The row of each cluster that is farthest from its centroid; of equally far ones the first."""

    def __init__(self, num_clusters: int, data: Data) -> None:
        # distance in the upper half: the bits of a float32 that is not negative sort like the number
        self.key = torch.zeros(num_clusters, dtype=torch.int64, device=data.device)
        self.rows = torch.zeros(num_clusters, data.dim, device=data.device)

    def take(self, chunk: Chunk, indices: torch.Tensor, distance: torch.Tensor) -> None:
        position = torch.arange(len(indices), device=indices.device)
        bid = distance.contiguous().view(torch.int32).long() << 32 | (_LAST - position)
        best = torch.zeros_like(self.key).scatter_reduce(0, indices, bid, "amax")
        better = (best >> 32) > (self.key >> 32)
        self.key = torch.where(better, best, self.key)
        self.rows[better] = chunk.rows[_LAST - (best[better] & _LAST)].float()

    def elect(self, processes: Processes) -> torch.Tensor:  # [K] float32
        """The farthest distances over all processes; each row stays where it is farthest, elsewhere it is zero."""
        bid = self.key >> 32 << 32 | (processes.size - 1 - processes.rank)
        best = bid.clone()
        processes.largest_(best)
        self.rows = torch.where((bid == best)[:, None], self.rows, 0)
        return (best >> 32).int().view(torch.float32)


class Labels:
    """The cluster of every row in the pass before: in memory if the rows are, else in a file without a name."""

    def __init__(self, data: Data) -> None:
        self.known = False  # after the first pass
        self.held = torch.empty(data.count, dtype=torch.int32, device=data.device) if data.source.in_memory else None
        self.file = tempfile.TemporaryFile() if self.held is None else None  # noqa: SIM115, it closes with its owner

    def moved(self, start: int, indices: torch.Tensor) -> int:  # [n]
        """How many rows from a position on changed their cluster (in the first pass, all); remembers the new ones."""
        now = indices.int()
        before = self._exchange(start, now)
        return int((now != before.to(now.device)).sum()) if self.known else len(now)

    def _exchange(self, start: int, now: torch.Tensor) -> torch.Tensor:  # [n] int32 -> [n]
        if self.held is not None:
            part = self.held[start : start + len(now)]
            before = part.clone()
            part.copy_(now)
            return before
        assert self.file is not None
        self.file.seek(4 * start)
        before = torch.frombuffer(bytearray(self.file.read(4 * len(now)) or b"\0" * 4), dtype=torch.int32)
        self.file.seek(4 * start)
        self.file.write(now.cpu().numpy().tobytes())
        return before


class Tally:
    """Sums over chunks, on the way to :class:`Totals`; several may share one record of what is farthest."""

    def __init__(self, data: Data, num_clusters: int, farthest: Farthest | None = None) -> None:
        self.data, self.num_clusters = data, num_clusters
        self.count = torch.zeros(num_clusters, dtype=torch.int64, device=data.device)
        self.total = torch.zeros(num_clusters, data.dim, dtype=torch.int64, device=data.device)
        self.bins = exact_bins(torch.zeros(0, dtype=torch.float64, device=data.device))
        self.moved = torch.zeros(1, dtype=torch.int64, device=data.device)
        self.farthest = farthest or Farthest(num_clusters, data)

    def take(self, chunk: Chunk, centroids: torch.Tensor, labels: Labels) -> None:
        """Assign some rows and add them up."""
        if not len(chunk.rows):
            return
        indices, distance = self.data.nearest(chunk.rows, centroids)
        stats = self.data.stats(chunk, indices, self.num_clusters)
        self.count += stats.count
        self.total += stats.total
        self.bins += exact_bins(weighted(distance, chunk.weight))
        self.moved += labels.moved(chunk.first - self.data.first, indices)
        self.farthest.take(chunk, indices, distance)

    def reduce(self) -> Tally:
        """Make the sums those of all processes, with one all-reduce."""
        self.data.processes.add_(self.count, self.total, self.bins, self.moved)
        return self

    def include(self, part: Tally) -> None:
        """Add other sums; what is farthest is the other's already."""
        self.count += part.count
        self.total += part.total
        self.bins += part.bins
        self.moved += part.moved

    def totals(self) -> Totals:
        count, total = CodeStats(self.count, self.total).rounded(
            self.data.within, weighted=self.data.weight is not None, dtype=torch.float64
        )
        return Totals(count, total, rounded_sum(self.bins), int(self.moved), self.farthest)


def tally(data: Data, chunks: Iterable[Chunk], centroids: torch.Tensor, labels: Labels) -> Totals:
    """Assign rows to their nearest centroids and add them up."""
    sums = Tally(data, len(centroids))
    for chunk in chunks:
        sums.take(chunk, centroids, labels)
    labels.known = True
    return sums.reduce().totals()
