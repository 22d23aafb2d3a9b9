"""K-means: exact Lloyd iterations on the lookup and the per-code sums, without an N x K matrix.

Every sum is taken in fixed point, so that the result is the same bits at any number of threads.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from vqkernels._core.backend import check_backend
from vqkernels._core.checks import check_floating, check_same_device, check_shape
from vqkernels.ops.code_stats import CodeStats, code_stats
from vqkernels.ops.nearest_code import NearestCode, nearest_code

_METRICS = ("l2", "cosine")
_INITS = ("k-means++", "random")

# k-means++ draws its centres one by one up to this many; beyond, k-means|| draws about twice as many candidates in
# a few rounds, and k-means++ on the weighted candidates picks the centres in ever smaller blocks
_ONE_BY_ONE = 256
_OVERSAMPLING = 2
_ROUNDS = 5
_SHRINK = 32

Callback = Callable[[int, float, int, int], Any]


class KMeansResult(NamedTuple):
    """Result of :func:`kmeans`."""

    centroids: torch.Tensor  # [K, D] float32
    count: torch.Tensor  # type: ignore[assignment]  # [K] float32, summed weight of the rows of each centroid
    inertia: float  # summed distance of the rows to their nearest centroid
    iterations: int  # how often the centroids were updated
    history: list[float]  # inertia before each update and, last, of the result


@torch.no_grad()
def kmeans(
    x: torch.Tensor,  # [N, D]
    num_clusters: int,
    *,
    metric: str = "l2",
    init: str | torch.Tensor = "k-means++",
    max_iter: int = 25,
    tol: float = 1e-4,
    seed: int = 0,
    weight: torch.Tensor | None = None,
    batch_size: int | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    group: Any = None,
    backend: str | None = None,
) -> KMeansResult:
    """Cluster vectors with Lloyd's algorithm, exact in every assignment, in O(N + K) memory.

    Each iteration is ``indices = nearest_code(x, centroids)`` followed by the mean of every cluster. The
    labels of a result are ``nearest_code(x, result.centroids, metric=metric).indices``.

    Args:
        x: vectors ``[N, D]``, any floating point dtype; a NumPy array is taken as well. Rows with a
            non-finite entry are left out; so are, for ``"cosine"``, zero rows.
        num_clusters: K, at most the number of distinct rows.
        metric: ``"l2"`` (squared distance), or ``"cosine"``: spherical k-means, on rows scaled to unit
            length, with centroids of unit length.
        init: ``"k-means++"``: for K <= 256 drawn one by one (Arthur and Vassilvitskii 2007), for more by
            k-means|| (Bahmani et al. 2012): 5 rounds draw about 2 K candidates, of which k-means++, weighted by
            what each candidate stands for, picks K in blocks of a 32nd of those missing. ``"random"``: distinct
            rows, drawn uniformly. Or the centroids to start from, ``[K, D]``.
        max_iter: most updates of the centroids, at least 0.
        tol: stop when the centroids move, in root mean square, by no more than this times the root mean
            square distance of the rows from their mean. It also stops when no row changes its cluster.
        seed: of the random draws.
        weight: ``[N]``, at least 0; a row counts ``weight`` times, a row of weight 0 is left out.
        batch_size: mini-batches of this size; not available yet.
        callback: called as ``callback(iteration, inertia, moved, empty)`` after every assignment: the summed
            distance, the number of rows that changed their cluster, and of clusters without a row.
        progress: report the same on standard error, with rows per second and the time left at most.
        group: process group over whose processes the rows are spread; not available yet.
        backend: a backend by name, or None.

    Returns:
        ``KMeansResult(centroids, count, inertia, iterations, history)``; ``count`` and ``inertia`` belong to
        the returned centroids.

    Numerics:
        The inertia never rises, up to the rounding of centroids to float32. A cluster left without rows takes
        the row farthest from its centroid (the next one for the next such cluster; equal rows count once).
        Same arguments, same bits, whatever the number of threads.

    Raises:
        NotImplementedError: for ``batch_size`` and ``group``.
        TypeError: if a tensor is not floating point.
        ValueError: on shapes or devices that do not match, an argument out of range, or more clusters than
            distinct rows.

    Example:
        >>> import torch, vqkernels
        >>> x = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> vqkernels.kmeans(x, 2).centroids.sort(0).values.tolist()
        [[0.5], [10.5]]
    """
    if batch_size is not None:
        raise NotImplementedError("batch_size: mini-batch k-means does not exist yet; pass None")
    if group is not None:
        raise NotImplementedError("group: k-means over several processes does not exist yet; pass None")
    if metric not in _METRICS:
        raise ValueError(f"metric: expected one of {', '.join(_METRICS)}, got {metric!r}")
    if num_clusters < 1 or max_iter < 0 or not tol >= 0:
        got = f"num_clusters={num_clusters}, max_iter={max_iter}, tol={tol}"
        raise ValueError(f"arguments: expected num_clusters >= 1, max_iter >= 0 and tol >= 0, got {got}")
    check_backend(backend)
    data = _usable(torch.as_tensor(x), weight, metric, backend)
    if num_clusters > len(data.rows):
        raise _too_many(num_clusters, len(data.rows), "usable")
    generator = torch.Generator().manual_seed(seed)
    centroids = _start(data, num_clusters, init, generator)
    if not progress:
        return _lloyd(data, centroids, max_iter, tol, [callback])
    bar = _Progress(len(data.rows), max_iter)
    result = _lloyd(data, centroids, max_iter, tol, [callback, bar])
    bar.close()
    return result


@dataclass(frozen=True)
class _Data:
    """The rows that take part, and the operations on them."""

    rows: torch.Tensor  # [N, D], finite; of unit length for cosine
    weight: torch.Tensor | None  # [N] > 0
    metric: str
    backend: str | None

    def assign(self, centroids: torch.Tensor) -> NearestCode:  # [K, D] -> [N], [N]
        return nearest_code(self.rows, centroids, metric=self.metric, backend=self.backend)

    def stats(self, indices: torch.Tensor, num_clusters: int) -> CodeStats:  # [N] -> [K], [K, D]
        return code_stats(self.rows, indices, num_clusters, weight=self.weight, backend=self.backend)

    def weighted(self, distance: torch.Tensor) -> torch.Tensor:  # [N] -> [N] float64
        return distance.double() if self.weight is None else distance.double() * self.weight

    def total(self, values: torch.Tensor) -> float:  # [...] float64
        """The same bits at any number of threads, which the sum of torch does not give."""
        column = values.reshape(-1, 1)
        one = torch.zeros(column.shape[0], dtype=torch.int64, device=column.device)
        return code_stats(column, one, 1, backend=self.backend).total.item()


def _usable(x: torch.Tensor, weight: torch.Tensor | None, metric: str, backend: str | None) -> _Data:
    check_floating("x", x)
    if x.dim() != 2 or x.shape[1] < 1:
        raise ValueError(f"x: expected [N, D], got shape {list(x.shape)}")
    keep = x.isfinite().all(dim=1)
    if weight is not None:
        check_floating("weight", weight)
        check_shape("weight", weight, (x.shape[0],), "[N]")
        check_same_device(x=x, weight=weight)
        weight = weight.float()
        if not bool((weight.isfinite() & (weight >= 0)).all()):
            raise ValueError("weight: expected finite numbers >= 0, got others")
        keep &= weight > 0
    if metric == "cosine":
        x = x if x.dtype == torch.float64 else x.float()
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        keep &= (norm[:, 0] > 0) & norm[:, 0].isfinite()
        x = x / norm
    if not bool(keep.all()):
        x, weight = x[keep], None if weight is None else weight[keep]
    return _Data(x.contiguous(), weight, metric, backend)


def _start(
    data: _Data, num_clusters: int, init: str | torch.Tensor, generator: torch.Generator
) -> torch.Tensor:  # [K, D] float32
    """Distinct starting centroids, or the given ones."""
    if isinstance(init, torch.Tensor):
        check_floating("init", init)
        check_shape("init", init, (num_clusters, data.rows.shape[1]), "[K, D]")
        check_same_device(x=data.rows, init=init)
        if not bool(init.isfinite().all()):
            raise ValueError("init: expected finite centroids, got others")
        _random_rows(data, num_clusters, generator)  # raises if there are too few distinct rows
        return torch.nn.functional.normalize(init.float(), dim=1) if data.metric == "cosine" else init.float()
    if init not in _INITS:
        raise ValueError(f"init: expected one of {', '.join(_INITS)} or a tensor, got {init!r}")
    if init == "random":
        return _random_rows(data, num_clusters, generator).float()
    # squared distance between unit vectors is twice the cosine distance, and exactly 0 for equal ones
    return _plus_plus(replace(data, metric="l2"), num_clusters, generator).float()


def _plus_plus(data: _Data, wanted: int, generator: torch.Generator) -> torch.Tensor:  # [wanted, D]
    """k-means++, for many centres on the weighted candidates of k-means||."""
    if wanted <= _ONE_BY_ONE:
        rows = _spread_rows(data, wanted, lambda missing: 1, generator)
    else:
        candidates = _OVERSAMPLING * wanted
        rows = _spread_rows(data, candidates, lambda missing: candidates // _ROUNDS, generator)
        if len(rows) > wanted:
            mass = data.stats(data.assign(rows).indices, len(rows)).count
            heavy = replace(data, rows=rows, weight=mass)
            rows = _spread_rows(heavy, wanted, lambda missing: 1 + missing // _SHRINK, generator)
    if len(rows) < wanted:
        raise _too_many(wanted, len(rows), "distinct")
    return rows


def _random_rows(data: _Data, wanted: int, generator: torch.Generator) -> torch.Tensor:  # [wanted, D]
    order = torch.randperm(len(data.rows), generator=generator).to(data.rows.device)
    found = data.rows[:0]
    for start in range(0, len(order), wanted):
        found = torch.cat([found, data.rows[order[start : start + wanted]]])
        found = found[_first_of_each(found)]
        if len(found) >= wanted:
            return found[:wanted]
    raise _too_many(wanted, len(found), "distinct")


def _spread_rows(
    data: _Data, wanted: int, block: Callable[[int], int], generator: torch.Generator
) -> torch.Tensor:  # [<= wanted, D]
    """Distinct rows drawn with probability proportional to weight times squared distance to those drawn before.

    The rows of a block share one "before"; ``block`` sizes it by the number still missing. Fewer rows than wanted
    come back only if there are no more distinct ones.
    """
    mass = data.weighted(torch.ones(len(data.rows), device=data.rows.device))
    drawn = [data.rows[_draw(mass, 1, generator)]]
    distance = data.assign(drawn[0]).distance
    while (missing := wanted - sum(map(len, drawn))) > 0:
        picked = _draw(data.weighted(distance), min(block(missing), missing), generator)
        if not len(picked):
            break
        rows = data.rows[picked]
        drawn.append(rows[_first_of_each(rows)])
        distance = torch.minimum(distance, data.assign(drawn[-1]).distance)
    return torch.cat(drawn)


def _draw(mass: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:  # [N] float64 -> [<= count]
    """Indices drawn with replacement in proportion to mass, each told once; none if there is no mass."""
    cumulated = mass.cumsum(0)
    point = torch.rand(count, generator=generator, dtype=torch.float64).to(mass.device) * cumulated[-1]
    picked: torch.Tensor = torch.searchsorted(cumulated, point, right=True).clamp(max=len(mass) - 1).unique()
    return picked[mass[picked] > 0]


def _first_of_each(rows: torch.Tensor) -> torch.Tensor:  # [n, D] -> [distinct]
    """Positions of the first of equal rows, in order."""
    values, inverse = torch.unique(rows, dim=0, return_inverse=True)
    position = torch.arange(len(rows), device=rows.device)
    first = torch.full_like(position[: len(values)], len(rows)).scatter_reduce(0, inverse, position, "amin")
    return first.sort().values


def _too_many(num_clusters: int, rows: int, kind: str) -> ValueError:
    return ValueError(f"num_clusters: expected at most the {rows} {kind} rows of x, got {num_clusters}")


def _lloyd(
    data: _Data, centroids: torch.Tensor, max_iter: int, tol: float, callbacks: list[Callback | None]
) -> KMeansResult:
    smallest_move = tol * _spread(data)
    previous: torch.Tensor | None = None
    settled = False
    history: list[float] = []
    for iteration in range(max_iter + 1):
        indices, distance = data.assign(centroids)
        count, total = data.stats(indices, len(centroids))
        history.append(data.total(data.weighted(distance)))
        moved = len(indices) if previous is None else int((indices != previous).sum())
        empty = int((count == 0).sum())
        for callback in filter(None, callbacks):
            callback(iteration, history[-1], moved, empty)
        if settled or iteration == max_iter or moved == empty == 0:
            break
        updated = _means(data, centroids, count, total)
        _fill_empty(data, updated, count, distance)
        change = data.total((updated - centroids).double().square())
        settled = (change / len(centroids)) ** 0.5 <= smallest_move
        centroids, previous = updated, indices
    return KMeansResult(centroids, count, history[-1], iteration, history)


def _means(
    data: _Data,
    centroids: torch.Tensor,  # [K, D]
    count: torch.Tensor,  # [K]
    total: torch.Tensor,  # [K, D]
) -> torch.Tensor:  # [K, D] float32
    """The best centroid of each cluster; one that is not defined stays."""
    size = torch.linalg.vector_norm(total, dim=1) if data.metric == "cosine" else count
    return torch.where(size[:, None] > 0, (total / size[:, None]).float(), centroids)


def _fill_empty(
    data: _Data,
    centroids: torch.Tensor,  # [K, D], in place
    count: torch.Tensor,  # [K]
    distance: torch.Tensor,  # [N]
) -> None:
    """Put centroids that serve no row on the farthest rows; no other row gets farther from its centroid by that."""
    empty = (count == 0).nonzero()[:, 0]
    if not len(empty):
        return
    farthest = data.weighted(distance).sort(descending=True, stable=True).indices[: len(empty)]
    rows = data.rows[farthest[distance[farthest] > 0]]
    rows = rows[_first_of_each(rows)]
    centroids[empty[: len(rows)]] = rows.float()


def _spread(data: _Data) -> float:
    """Root mean square distance of the rows from their mean."""
    one = torch.zeros(len(data.rows), dtype=torch.int64, device=data.rows.device)
    count, total = data.stats(one, 1)
    to_mean = replace(data, metric="l2").assign((total / count[:, None]).float()).distance
    return float((data.total(data.weighted(to_mean)) / count.item()) ** 0.5)


class _Progress:
    """A callback that keeps a bar on standard error; where no line can be rewritten, it writes one each time."""

    def __init__(self, rows: int, max_iter: int) -> None:
        self.rows, self.max_iter, self.start = rows, max_iter, time.perf_counter()
        self.rewrite = sys.stderr.isatty()

    def __call__(self, iteration: int, inertia: float, moved: int, empty: int) -> None:
        seconds = max(time.perf_counter() - self.start, 1e-9)
        done, passes = iteration + 1, self.max_iter + 1
        bar = "#" * (20 * done // passes)
        line = (
            f"k-means [{bar:<20}] {iteration}/{self.max_iter}  inertia {inertia:.6g}  moved {moved}  "
            f"empty {empty}  {self.rows * done / seconds:.3g} rows/s  ETA {seconds / done * (passes - done):.0f} s"
        )
        sys.stderr.write(f"\r{line:<118}" if self.rewrite else f"{line}\n")
        sys.stderr.flush()

    def close(self) -> None:
        if self.rewrite:
            sys.stderr.write("\n")
