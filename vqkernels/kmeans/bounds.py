"""Bounds on distances, by which a pass passes over the centroids that cannot be the nearest of a row.

As in Yinyang k-means (Ding et al. 2015): of every row and every group of centroids a lower bound of the distance is
kept. When the centroids move, a bound falls by the largest move in its group; a row is compared with the groups whose
bound is not above the distance to its own centroid, which gives these groups a new bound. Unlike there, groups are
small and scanned as they are packed, so that the scan of one for some of the rows is as quick as one for all; and the
bounds allow for every rounding: what comes out are the bits of a lookup in all centroids (csrc/README.md).

Whether bounds pay is found out by some of the rows, which always have them.
"""

from __future__ import annotations

import math

import torch

from vqkernels._core.backend import requested_backend
from vqkernels._core.env import bounds_bytes, isa_code
from vqkernels._core.extension import DTYPE_CODES, cpu_unsupported_reasons, extension
from vqkernels.kmeans.data import Chunk, Data
from vqkernels.ops.nearest_code import NearestCode

_SHORTEST = 17  # dimensions; up to here a lookup skips centroids by a tree of its own
_FEWEST = 1 << 22  # numbers in rows: what they are ordered and watched for is little beside a pass
_SAMPLED = 1 << 6  # every so many rows one is watched,
_MOST = 1 << 8  # and no more than this
_SETTLED, _AGAIN = 3, 5  # passes until bounds are as wide as they get, and until groups are chosen anew
_PASSES = 2  # in which bounds have to make up for the first pass with them, which looks at everything
_TURNS = 3  # of a direction towards that of the largest spread,
_SHORT = 64  # in as many dimensions
_GAIN = 0.75  # of what a pass without them costs


class Bounds:
    """Of all rows of this process in the passes in which they pay; in the others of some of the rows."""

    def __init__(self, data: Data, passes: int) -> None:  # passes to come
        self.data, self.passes, self.begun = data, passes, False
        self.watched: tuple[torch.Tensor, torch.Tensor, Bounded] | None = None  # [n, D], [n] their centroids, n
        self.all: Bounded | None = None

    def begin(self, centroids: torch.Tensor, changed: torch.Tensor | None) -> None:  # [K, D], [K] bool
        """Decide what the next pass will use; ``changed`` as a pass without bounds would."""
        first, self.begun = not self.begun, True
        self.passes -= 1
        # where centroids start tells nothing of how they are going to move
        if first or not self._possible(len(centroids)):
            return
        plain = _plain_cost(len(centroids), self.data.dim)
        if changed is not None:
            # more than the share of the others: rows whose own has moved away are compared with all; measured
            plain *= min(1.0, 1.15 * math.sqrt(float(changed.double().mean())))
        if self.all is not None and (self.all.passes == 1 or self.all.cost() <= plain):
            self.all.move(centroids)
            return
        self.all = None
        watched = self._watch(centroids)
        saved = min(_PASSES, self.passes) * (plain - watched.cost())
        if watched.passes >= _SETTLED and watched.cost() <= _GAIN * plain and 1 - plain < saved:
            self.all = Bounded(self.data.count, centroids)
            self.all.move(centroids)
            self.watched = None

    def nearest(self, chunk: Chunk, before: torch.Tensor) -> NearestCode | None:  # [n] in the pass before, or -1
        """The nearest centroids of some rows by their bounds, if this pass uses them."""
        if self.all is None:
            return None
        return self.all.nearest(chunk.rows, before, chunk.first - self.data.first)

    def _watch(self, centroids: torch.Tensor) -> Bounded:
        """Make this pass over some rows."""
        if self.watched is None or self.watched[2].passes == _AGAIN:
            apart = max(_SAMPLED, self.data.count // _MOST)
            rows = torch.cat([chunk.rows[::apart] for chunk in self.data.chunks()])
            self.watched = rows, torch.zeros(len(rows), dtype=torch.int64), Bounded(len(rows), centroids)
        rows, labels, bounded = self.watched
        bounded.move(centroids)
        self.watched = rows, bounded.nearest(rows, labels, 0).indices, bounded
        return bounded

    def _possible(self, num_centroids: int) -> bool:
        data = self.data
        return (
            data.source.in_memory
            and data.metric == "l2"
            and data.dtype == torch.float32
            and data.dim >= _SHORTEST
            and data.count * data.dim >= _FEWEST
            and requested_backend(data.backend) in (None, "cpu")
            and not cpu_unsupported_reasons(*(chunk.rows for chunk in data.chunks()))
            and 4 * data.count * _groups(num_centroids) <= bounds_bytes()
        )


class Bounded:
    """Some rows, and for each group of centroids a distance none of them is nearer than."""

    def __init__(self, count: int, centroids: torch.Tensor) -> None:  # rows, [K, D]
        self.isa = isa_code()
        self.order = neighbours(centroids, extension().group_size(self.isa)).int()
        self.lower = torch.zeros(count, _groups(len(centroids)))
        self.before = self.now = centroids.contiguous()
        self.passes = 0
        self.scored = 0.0  # pairs in this pass

    def move(self, centroids: torch.Tensor) -> None:  # [K, D]
        """Begin a pass."""
        self.before, self.now = self.now, centroids.contiguous()
        self.passes, self.scored = self.passes + 1, 0.0

    def nearest(
        self,
        rows: torch.Tensor,  # [n, D]
        before: torch.Tensor,  # [n] any centroids, best those that were nearest
        first: int,  # row
    ) -> NearestCode:  # [n], [n]
        """The same as a lookup in all centroids."""
        indices, distance = before.clamp(min=0), torch.empty(len(rows))
        share = extension().nearest_by_bounds(
            rows.data_ptr(),
            DTYPE_CODES[rows.dtype],
            self.now.data_ptr(),
            self.before.data_ptr(),
            self.order.data_ptr(),
            len(rows),
            *self.now.shape,
            torch.get_num_threads(),
            self.isa,
            self.lower[first:].data_ptr(),
            indices.data_ptr(),
            distance.data_ptr(),
        )
        self.scored += share * len(rows) * len(self.now)
        return NearestCode(indices, distance)

    def cost(self) -> float:
        """Of the last pass, in those that score all pairs; the first, which knows no bounds, is one."""
        (count, groups), (num_centroids, dim) = self.lower.shape, self.now.shape
        # measured: what there is to do for a row, and for a row and a group, takes as long as so many pairs
        aside = 20 + (12000 + 16 * groups) / dim
        return (self.scored / count + aside) / num_centroids


def neighbours(centroids: torch.Tensor, size: int) -> torch.Tensor:  # [K, D] -> [K]
    """The centroids in an order in which ``size`` in a row are near each other.

    They are halved, again and again, along the direction in which they spread most; long ones as random projections.
    """
    points = centroids / centroids.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)  # squares are finite
    if points.shape[1] > _SHORT:
        points = points @ torch.randn(points.shape[1], _SHORT, generator=torch.Generator().manual_seed(0))

    def halves(some: torch.Tensor) -> list[torch.Tensor]:
        groups = -(-len(some) // size)
        if groups == 1:
            return [some]
        apart = points[some] - points[some].mean(dim=0)
        direction = apart[apart.square().sum(dim=1).argmax()]
        for _ in range(_TURNS):
            direction = apart.T @ (apart @ direction)
            direction = direction / direction.norm().clamp(min=torch.finfo(torch.float32).tiny)
        order, middle = some[(apart @ direction).argsort(stable=True)], groups // 2 * size
        return halves(order[:middle]) + halves(order[middle:])

    return torch.cat(halves(torch.arange(len(points))))


def _plain_cost(num_centroids: int, dim: int) -> float:
    """Of a pass without bounds, in passes that score all pairs as those with bounds do."""
    return float(extension().plain_cost(num_centroids, dim, isa_code()))


def _groups(num_centroids: int) -> int:
    return -(-num_centroids // int(extension().group_size(isa_code())))
