"""Lloyd's iteration: one pass over the rows, then the means of what it found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from vqkernels.kmeans.data import Data
from vqkernels.kmeans.last_pass import LastPass
from vqkernels.kmeans.seeding import random_rows
from vqkernels.kmeans.sums import exact_sum
from vqkernels.kmeans.tally import Totals, tally

Callback = Callable[[int, float, int, int], Any]


class KMeansResult(NamedTuple):
    """Result of :func:`kmeans`."""

    centroids: torch.Tensor  # [K, D] float32
    count: torch.Tensor  # type: ignore[assignment]  # [K] float32, summed weight of the rows of each centroid
    inertia: float  # summed distance of the rows to their nearest centroid
    iterations: int  # how often the centroids were updated
    history: list[float]  # inertia before each update and, last, of the result


class State(NamedTuple):
    """Everything the next pass depends on, apart from the rows: what a checkpoint holds."""

    centroids: torch.Tensor  # [K, D] float32
    history: tuple[float, ...] = ()  # inertia of each pass so far
    spread: float | None = None  # root mean square distance of the rows from their mean, once it is known
    settled: bool = False  # only the last pass is left


def lloyd(
    data: Data,
    state: State,
    *,
    max_iter: int,
    tol: float,
    callbacks: Sequence[Callback] = (),
    on_state: Callable[[State], Any] | None = None,
    assign: Callable[[torch.Tensor], Totals] | None = None,
) -> KMeansResult:
    """Iterate from a state; ``on_state`` is told every new one, ``assign`` makes a pass of another kind."""
    if assign is None:
        assign = partial(tally, data, last=LastPass(data, passes=max_iter + 1 - len(state.history)))
    while True:
        centroids, iteration = state.centroids, len(state.history)
        found = assign(centroids)
        history = (*state.history, found.inertia)
        empty = int((found.count == 0).sum())
        for callback in callbacks:
            callback(iteration, found.inertia, found.moved, empty)
        if state.settled or iteration == max_iter:
            break
        updated = means(centroids, found.count, found.total, data.metric)
        repair(updated, found, data)
        if torch.equal(updated, centroids):
            break
        spread = spread_of_rows(data, found) if state.spread is None else state.spread
        settled = not empty and has_settled(centroids, updated, history, tol, spread, float(found.count.sum()))
        state = State(updated, history, spread, settled)
        if on_state is not None:
            on_state(state)
    if empty:
        random_rows(data, len(centroids), 0)  # raises if there are too few distinct rows
    return KMeansResult(centroids, found.count.float(), found.inertia, iteration, list(history))


def means(
    centroids: torch.Tensor,  # [K, D]
    count: torch.Tensor,  # [K]
    total: torch.Tensor,  # [K, D]
    metric: str,
) -> torch.Tensor:  # [K, D] float32
    """The best centroid of each cluster; one that is not defined stays."""
    size = total.square().sum(dim=1).sqrt() if metric == "cosine" else count
    return torch.where(size[:, None] > 0, (total / size[:, None]).float(), centroids)


def repair(
    centroids: torch.Tensor,  # [K, D], in place
    found: Totals,
    data: Data,
) -> torch.Tensor:  # [<= empty clusters]
    """Split the worst clusters: each centroid that serves no row moves to the farthest row of one of them.

    Worst is the cluster with the largest product of weight and distance of its farthest row, a bound of its inertia;
    each gives one row at most. No row gets farther from its nearest centroid by that. Returns what was moved.
    """
    empty = (found.count == 0).nonzero()[:, 0]
    if not len(empty):
        return empty
    distance = found.farthest.elect(data.processes)
    badness = found.count * distance
    worst = badness.sort(descending=True, stable=True).indices[: len(empty)]
    worst = worst[badness[worst] > 0]
    moved = empty[: len(worst)]
    centroids[moved] = data.processes.whoever_has(found.farthest.rows[worst])
    return moved


def spread_of_rows(data: Data, found: Totals) -> float:
    """Root mean square distance of the rows from their mean."""
    mass = float(found.count.sum())
    mean = found.total.sum(dim=0) / mass
    return math.sqrt(max(0.0, data.squares / mass - exact_sum(mean.square())))


def has_settled(
    before: torch.Tensor,  # [K, D]
    after: torch.Tensor,  # [K, D]
    history: Sequence[float],
    tol: float,
    spread: float,
    mass: float,
) -> bool:
    """Whether the centroids hardly moved, or the last move hardly lowered the inertia."""
    changed = (after != before).any(dim=1)
    shift = math.sqrt(exact_sum((after[changed] - before[changed]).double().square()) / len(before))
    gain = history[-2] - history[-1] if len(history) > 1 else math.inf
    return shift <= tol * spread or (tol > 0 and gain <= (tol * spread) ** 2 * mass)
