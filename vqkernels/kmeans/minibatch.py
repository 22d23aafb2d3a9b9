"""Mini-batches: the means move after every batch, each the mean of all rows it was ever given."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vqkernels.kmeans.data import Data
from vqkernels.kmeans.last_pass import LastPass
from vqkernels.kmeans.lloyd import Callback, KMeansResult, has_settled, means, repair, spread_of_rows
from vqkernels.kmeans.seeding import random_rows
from vqkernels.kmeans.tally import Tally, Totals, tally


class Running:
    """Centroids and the sums they are the means of."""

    def __init__(self, centroids: torch.Tensor, metric: str) -> None:  # [K, D]
        self.centroids, self.metric = centroids, metric
        self.count = torch.zeros_like(centroids[:, 0], dtype=torch.float64)  # [K]
        self.total = torch.zeros_like(centroids, dtype=torch.float64)  # [K, D]

    def take(self, count: torch.Tensor, total: torch.Tensor) -> None:  # [K], [K, D]
        """Move the centroids by the sums of one batch."""
        self.count += count
        self.total += total
        self.centroids = means(self.centroids, self.count, self.total, self.metric)

    def repair(self, found: Totals, data: Data) -> None:
        """Give centroids without rows in a whole pass a new place and no past."""
        moved = repair(self.centroids, found, data)
        self.count[moved] = 0
        self.total[moved] = 0


def minibatches(
    data: Data,
    start: torch.Tensor,  # [K, D]
    batch_size: int,
    *,
    max_iter: int,
    tol: float,
    callbacks: Sequence[Callback] = (),
) -> KMeansResult:
    """Iterate from centroids; an iteration is one pass over the rows."""
    running = Running(start, data.metric)
    last_pass = LastPass(data)
    history: list[float] = []
    steps = max(data.processes.of_each(-(-data.count // batch_size), data.device))
    settled = False
    for iteration in range(max_iter + 1):
        before = running.centroids
        last = settled or iteration == max_iter
        found = tally(data, before, last_pass) if last else _pass(data, running, batch_size, steps, last_pass)
        history.append(found.inertia)
        empty = int((found.count == 0).sum())
        for callback in callbacks:
            callback(iteration, found.inertia, found.moved, empty)
        if last:
            break
        running.repair(found, data)
        spread = spread_of_rows(data, found)
        settled = not empty and has_settled(before, running.centroids, history, tol, spread, float(found.count.sum()))
    if empty:
        random_rows(data, len(before), 0)  # raises if there are too few distinct rows
    return KMeansResult(before, found.count.float(), found.inertia, iteration, history)


def _pass(data: Data, running: Running, batch_size: int, steps: int, last_pass: LastPass) -> Totals:
    """All batches once; every process takes as many steps, at the end perhaps without rows."""
    whole = Tally(data, len(running.centroids))
    batches = data.batches(batch_size)
    for _ in range(steps):
        part = Tally(data, len(running.centroids), whole.farthest)
        if (batch := next(batches, None)) is not None:
            nearest = data.nearest(batch.rows, running.centroids)
            part.take(batch, nearest, last_pass.read(batch))
            last_pass.write(batch, nearest)
            part.put(batch, nearest.indices)
        found = part.reduce().totals()
        running.take(found.count, found.total)
        whole.include(part)
    return whole.totals()
