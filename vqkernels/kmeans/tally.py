"""What one pass over the rows finds out, as integers that add up over chunks and processes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from vqkernels.kmeans.data import Chunk, Data
from vqkernels.kmeans.last_pass import LastPass, reassign
from vqkernels.kmeans.processes import Processes
from vqkernels.kmeans.sums import exact_bins, rounded_sum, weighted
from vqkernels.ops.nearest_code import NearestCode

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


class Tally:
    """Sums over chunks, on the way to :class:`Totals`; several may share one record of what is farthest."""

    def __init__(self, data: Data, num_clusters: int, farthest: Farthest | None = None) -> None:
        self.data, self.num_clusters = data, num_clusters
        self.count = torch.zeros(num_clusters, dtype=torch.int64, device=data.device)  # rows
        self.mass = data.mass_bands.zeros(num_clusters, 1, data.device)  # their weights, if they have any
        self.total = data.bands.zeros(num_clusters, data.dim, data.device)
        self.bins = exact_bins(torch.zeros(0, dtype=torch.float64, device=data.device))
        self.moved = torch.zeros(1, dtype=torch.int64, device=data.device)
        self.farthest = farthest or Farthest(num_clusters, data)

    def take(self, chunk: Chunk, found: NearestCode, before: NearestCode) -> None:
        """Add up what is known of assigned rows, but for the clusters."""
        self.moved += (found.indices != before.indices).sum()
        self.bins += exact_bins(weighted(found.distance, chunk.weight))
        self.farthest.take(chunk, *found)

    def put(self, chunk: Chunk, indices: torch.Tensor, sign: int = 1) -> None:  # [n], -1: nowhere
        """Put rows into clusters, or with sign -1 take them out."""
        data = self.data
        options: dict[str, Any] = {"sign": sign, "backend": data.backend}
        data.bands.add_(self.count, self.total, chunk.rows, indices, chunk.weight, **options)
        if chunk.weight is not None:
            data.mass_bands.add_(self.count, self.mass, chunk.weight[:, None], indices, None, **options)

    def reduce(self) -> Tally:
        """Make the sums those of all processes, with one all-reduce."""
        self.data.processes.add_(self.count, self.mass, self.total, self.bins, self.moved)
        return self

    def include(self, part: Tally) -> None:
        """Add other sums; what is farthest is the other's already."""
        self.count += part.count
        self.mass += part.mass
        self.total += part.total
        self.bins += part.bins
        self.moved += part.moved

    def totals(self) -> Totals:
        data, count = self.data, self.count.double()
        if data.weight is not None:
            count = data.mass_bands.rounded(self.mass)[:, 0]
        return Totals(count, data.bands.rounded(self.total), rounded_sum(self.bins), int(self.moved), self.farthest)


def tally(data: Data, centroids: torch.Tensor, last: LastPass) -> Totals:  # [K, D]
    """Assign all rows to their nearest centroids and add them up; what it found becomes the last pass."""
    sums = Tally(data, len(centroids))
    if last.sums is not None:
        sums.count, sums.mass, sums.total = last.sums
    changed = last.changed(centroids)
    last.bounds.begin(centroids, changed)
    for chunk in data.chunks():
        before = last.read(chunk)
        found = last.bounds.nearest(chunk, before.indices)
        if found is None:
            found = assign(data, chunk.rows, before, centroids, changed)
        last.write(chunk, found)
        sums.take(chunk, found, before)
        if last.sums is None:
            sums.put(chunk, found.indices)
        else:
            # rows that stay in their clusters are there already
            moves = found.indices != before.indices
            sums.put(chunk, torch.where(moves, found.indices, -1))
            sums.put(chunk, torch.where(moves, before.indices, -1), sign=-1)
    last.centroids, last.sums = centroids, (sums.count.clone(), sums.mass.clone(), sums.total.clone())
    return sums.reduce().totals()


def assign(
    data: Data,
    rows: torch.Tensor,  # [n, D]
    before: NearestCode,  # [n], [n]
    centroids: torch.Tensor,  # [K, D]
    changed: torch.Tensor | None,  # [K]
) -> NearestCode:  # [n], [n]
    """The nearest centroids."""
    if changed is None or not len(rows):
        return data.nearest(rows, centroids)
    return reassign(data.nearest, rows, before, centroids, changed)
