"""Where the centroids start: rows of the data, all different.

Everything but ``random`` looks at no more than a uniform sample, which every process holds in full, so that all of
them draw the same seeds without another word.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vqkernels._core.checks import check_data, check_floating, check_shape
from vqkernels._core.shown import shown
from vqkernels.kmeans.data import Data
from vqkernels.kmeans.source import tensor_of
from vqkernels.ops.code_stats import code_stats
from vqkernels.ops.nearest_code import NearestCode, nearest_code

INITS = ("k-means++", "hierarchical", "random")

# centers proposed at a time: a part of those missing, so that few proposals are rejected
_SHRINK = 8
_LARGEST_BLOCK = 2048
# seeds are chosen among this many rows, or so many per center if that is more
_SAMPLE = 1 << 18
_SAMPLE_PER_CENTER = 8
_COARSE_ITERATIONS = 5


def given_init(init: Any) -> str | torch.Tensor:
    """One of the names, or centroids as a tensor.

    Raises:
        TypeError: if they are not floating point.
        ValueError: if it is no such name, or not all centroids are finite.
    """
    if isinstance(init, str):
        if init not in INITS:
            raise ValueError(f"init: expected one of {', '.join(INITS)} or centroids [K, D], got {shown(init)}")
        return init
    centroids = init if isinstance(init, torch.Tensor) else tensor_of("init", init)
    if centroids is not init and not centroids.is_complex():
        centroids = centroids.double()  # whole numbers are as good, in an array
    check_floating("init", centroids)
    check_data("init", centroids)
    # beyond float32 is not finite: that is what centroids are
    if not bool(centroids.float().isfinite().all()):
        raise ValueError("init: expected finite centroids, got others")
    return centroids.detach()


def start(data: Data, num_clusters: int, init: str | torch.Tensor, seed: int) -> torch.Tensor:  # [K, D] float32
    """Distinct starting centroids, or the given ones."""
    if isinstance(init, torch.Tensor):
        check_shape("init", init, (num_clusters, data.dim), "[K, D]")
        if init.device != data.device:
            raise ValueError(f"device: expected one device, got x on {data.device}, init on {init.device}")
        return torch.nn.functional.normalize(init.float(), dim=1) if data.metric == "cosine" else init.float()
    if init == "random":
        return random_rows(data, num_clusters, seed).float()
    size = max(_SAMPLE, _SAMPLE_PER_CENTER * num_clusters)
    while True:
        sample = data.sample(size, seed)
        # squared distance between unit vectors is twice the cosine distance, and exactly 0 for equal ones
        pool = _Pool(sample.rows, _small(sample.weight), data.backend)
        generator = torch.Generator().manual_seed(seed)
        rows = _DRAW[init](pool, num_clusters, generator)
        if len(rows) == num_clusters:
            return rows.float()
        if len(sample.rows) == data.total:
            # rows that are closer than float32 distances tell have not been drawn
            every = torch.cat([rows, sample.rows])
            distinct = every[_first_of_each(every)]
            if len(distinct) < num_clusters:
                raise too_many(num_clusters, len(distinct), "distinct")
            return distinct[:num_clusters].float()
        size *= 8


def random_rows(data: Data, wanted: int, seed: int) -> torch.Tensor:  # [wanted, D]
    """Distinct rows, drawn uniformly among all of them.

    Raises:
        ValueError: if there are fewer distinct rows.
    """
    size = wanted
    while True:
        rows = data.sample(size, seed).rows
        found = rows[_first_of_each(rows)]
        if len(found) >= wanted:
            return found[:wanted]
        if len(rows) == data.total:
            raise too_many(wanted, len(found), "distinct")
        size = min(4 * size, data.total)


def too_many(num_clusters: int, rows: int, kind: str) -> ValueError:
    return ValueError(f"num_clusters: expected at most the {rows} {kind} rows of x, got {num_clusters}")


@dataclass(frozen=True)
class _Pool:
    """Rows to draw from."""

    rows: torch.Tensor  # [n, D]
    weight: torch.Tensor | None  # [n]
    backend: str | None

    def assign(self, centers: torch.Tensor) -> NearestCode:  # [K, D] -> [n], [n]
        return nearest_code(self.rows, centers, backend=self.backend)

    def mass(self, distance: torch.Tensor) -> torch.Tensor:  # [n] -> [n] float64
        return distance.double() if self.weight is None else distance.double() * self.weight

    def only(self, keep: torch.Tensor) -> _Pool:
        return replace(self, rows=self.rows[keep], weight=None if self.weight is None else self.weight[keep])


def _plus_plus(
    pool: _Pool,
    wanted: int,
    generator: torch.Generator,
    before: torch.Tensor | None = None,  # [k, D]
) -> torch.Tensor:  # [<= wanted, D]
    """k-means++: each row is drawn with probability proportional to weight times squared distance to those before.

    Rows are proposed in blocks, by the distances before the block, and accepted with the probability by which their
    distance has shrunk since: the result is distributed as if they were drawn one by one. No row comes twice; fewer
    rows than wanted come back only if there are no more distinct ones.
    """
    if before is None:
        before = pool.rows[_draw(pool.mass(torch.ones_like(pool.rows[:, 0])), 1, generator)]
    drawn = [before]
    distance = pool.assign(before).distance
    while (missing := wanted - sum(map(len, drawn))) > 0:
        block = min(1 + missing // _SHRINK, _LARGEST_BLOCK)
        proposed = _draw(pool.mass(distance), block, generator)
        if not len(proposed):
            break
        drawn.append(pool.rows[proposed[_accepted(pool.rows[proposed], distance[proposed], generator)]])
        distance = torch.minimum(distance, pool.assign(drawn[-1]).distance)
    return torch.cat(drawn)


def _accepted(
    rows: torch.Tensor,  # [b, D]
    distance: torch.Tensor,  # [b], squared, > 0
    generator: torch.Generator,
) -> torch.Tensor:  # [<= b] positions
    """Rejection by what the accepted rows of the block, in order, take from the distance of the others."""
    wide = rows.double()
    # the direct form: exactly zero for equal rows, and the same bits at any number of threads
    between = torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist").square_().cpu().numpy()
    remaining = distance.double().cpu().numpy()
    threshold = remaining * torch.rand(len(rows), generator=generator, dtype=torch.float64).numpy()
    accepted = []
    for position in range(len(rows)):
        if threshold[position] < remaining[position]:
            accepted.append(position)
            remaining = np.minimum(remaining, between[position])
    return torch.tensor(accepted, device=rows.device)


def _hierarchical(pool: _Pool, wanted: int, generator: torch.Generator) -> torch.Tensor:  # [<= wanted, D]
    """About sqrt(K) clusters, then in each one, by k-means++, as many seeds as its share of the weight."""
    coarse = _plus_plus(pool, math.isqrt(wanted - 1) + 1, generator).float()
    for _ in range(_COARSE_ITERATIONS):
        count, total = code_stats(
            pool.rows, pool.assign(coarse).indices, len(coarse), weight=pool.weight, backend=pool.backend
        )
        coarse = torch.where(count[:, None] > 0, (total / count[:, None]).float(), coarse)
    indices = pool.assign(coarse).indices
    count = code_stats(pool.rows[:, :1], indices, len(coarse), weight=pool.weight, backend=pool.backend).count
    members = indices.argsort(stable=True).split(indices.bincount(minlength=len(coarse)).tolist())
    seeds = torch.cat(
        [
            _plus_plus(pool.only(member), share, generator)
            for member, share in zip(members, _shares(count.double(), wanted), strict=True)
            if share
        ]
    )
    # a cluster may have fewer distinct rows than its share
    return seeds if len(seeds) == wanted else _plus_plus(pool, wanted, generator, seeds)


def _small(weight: torch.Tensor | None) -> torch.Tensor | None:  # [n] -> [n] float64
    """Weights up to 1 in the same proportions: float32 then holds what they sum."""
    return None if weight is None else weight.double() * 2.0 ** -math.frexp(float(weight.max()))[1]


def _shares(mass: torch.Tensor, wanted: int) -> list[int]:  # [k]
    """Integers of the given sum in proportion to mass; the largest remainders are rounded up."""
    exact = mass * wanted / mass.sum()
    shares = exact.floor().long()
    up = (exact - shares).argsort(descending=True, stable=True)[: wanted - int(shares.sum())]
    shares[up] += 1
    counts: list[int] = shares.tolist()
    return counts


def _draw(mass: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:  # [n] float64 -> [<= count]
    """Indices drawn with replacement in proportion to mass; none if there is no mass."""
    cumulated = mass.cumsum(0)
    point = torch.rand(count, generator=generator, dtype=torch.float64).to(mass.device) * cumulated[-1]
    drawn = torch.searchsorted(cumulated, point, right=True).clamp(max=len(mass) - 1)
    return drawn[mass[drawn] > 0]


def _first_of_each(rows: torch.Tensor) -> torch.Tensor:  # [n, D] -> [distinct]
    """Positions of the first of equal rows, in order."""
    values, inverse = torch.unique(rows, dim=0, return_inverse=True)
    position = torch.arange(len(rows), device=rows.device)
    first = torch.full_like(position[: len(values)], len(rows)).scatter_reduce(0, inverse, position, "amin")
    return first.sort().values


_DRAW: dict[str, Callable[[_Pool, int, torch.Generator], torch.Tensor]] = {
    "k-means++": _plus_plus,
    "hierarchical": _hierarchical,
}
