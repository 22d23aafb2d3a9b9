"""The public k-means: checks, then seeding and the iteration."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from vqkernels._core.arguments import Backend, Count, Integer, NonNegative, OneOf, Size, checked
from vqkernels._core.backend import requested_backend
from vqkernels._core.devices import through_the_cpu, unserved_device
from vqkernels.kmeans.balanced import MaxShare, balanced
from vqkernels.kmeans.data import Data, check_weight
from vqkernels.kmeans.lloyd import Callback, KMeansResult, State, lloyd
from vqkernels.kmeans.minibatch import minibatches
from vqkernels.kmeans.processes import Processes, check_group
from vqkernels.kmeans.progress import Progress
from vqkernels.kmeans.seeding import given_init, start, too_many
from vqkernels.kmeans.source import HeldRows, open_source

METRICS = ("l2", "cosine")
_HIGHEST_SEED = (1 << 63) - 1


@torch.no_grad()
@checked
def kmeans(
    x: Any,  # [N, D]
    num_clusters: Size,
    *,
    metric: Annotated[str, OneOf(METRICS)] = "l2",
    init: Any = "k-means++",
    n_init: Size = 1,
    max_iter: Count = 25,
    tol: NonNegative = 1e-4,
    seed: Integer = 0,
    weight: Any = None,  # [N]
    batch_size: Size | None = None,
    max_share: MaxShare | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    group: Any = None,
    backend: Backend = None,
) -> KMeansResult:
    """Cluster vectors with Lloyd's algorithm, exact in every assignment, without an N x K matrix.

    Each iteration is ``indices = nearest_code(x, centroids)`` followed by the mean of every cluster. The
    labels of a result are ``nearest_code(x, result.centroids, metric=metric).indices``; with ``max_share`` those of
    :func:`vqkernels.balanced_codes`.

    Args:
        x: vectors ``[N, D]``, any floating point dtype: a tensor or NumPy array; or rows on disk, read once per
            iteration and never held: a ``numpy.memmap``, the path of a ``.npy`` or ``.safetensors`` file or of a
            folder of them; or an iterable of batches that can be gone through again. Rows with a non-finite entry
            are left out; so are rows longer than 2^62 and, for ``"cosine"``, zero rows.
        num_clusters: K, at most the number of distinct rows.
        metric: ``"l2"`` (squared distance), or ``"cosine"``: spherical k-means, on rows scaled to unit
            length, with centroids of unit length.
        init: ``"k-means++"`` (Arthur and Vassilvitskii 2007), or ``"hierarchical"``: about sqrt(K) clusters, then
            k-means++ inside each; both choose among at most max(2^18, 8 K) rows, drawn uniformly. ``"random"``:
            distinct rows, drawn uniformly from all. Or the centroids to start from, ``[K, D]``, a tensor or array.
        n_init: how many times to start, by the seeds from ``seed`` on; the lowest inertia is returned. Given
            centroids start once.
        max_iter: most updates of the centroids, at least 0; with ``batch_size``, most passes over the rows.
        tol: stop when the centroids move, in root mean square, by no more than this times the root mean square
            distance of the rows from their mean; or when the inertia falls by no more than ``tol**2`` times that
            of a single centroid. It also stops when no centroid moves.
        seed: of the random draws.
        weight: ``[N]``, at least 0; a row counts ``weight`` times, a row of weight 0 is left out.
        batch_size: None for Lloyd's algorithm. Else centroids move after every so many rows (of each process), to
            the mean of all rows they were ever given; rows in memory are shuffled once, others come as they are.
        max_share: most rows of a cluster, in even shares N / K: with 1 all sizes are equal, up to rounding. Rows are
            then held in memory. The result assigns them as :func:`vqkernels.balanced_codes` does, at the least summed
            distance under that bound or at most 2 % more; the iterations before, at most 10 %. Not with ``weight``
            or ``batch_size``.
        callback: called as ``callback(iteration, inertia, moved, empty)`` after every pass: the summed distance,
            the number of rows that changed their cluster, and of clusters without a row.
        progress: report the same on standard error, with rows per second and the time left at most.
        group: a ``torch.distributed`` process group over whose processes the rows are spread: each calls with its
            own, or none, and all return the result of one process that has them all in order of rank.
        backend: a backend by name, or None.

    Returns:
        ``KMeansResult(centroids, count, inertia, iterations, history)``; ``count`` and ``inertia`` belong to
        the returned centroids.

    Numerics:
        The inertia of Lloyd's algorithm never rises, up to the rounding of centroids to float32. Empty clusters
        split the worst: the first takes the farthest row of the cluster with the largest product of weight and
        distance of its farthest row, the next that of the second such cluster, and so on. All sums are sums of
        integers: same arguments, same bits, whatever the number of threads, chunks and processes (with
        ``batch_size``, of threads and chunks). README.md has the error bounds.

    Raises:
        OSError: if a file cannot be read.
        TypeError: if x is none of the above, or not floating point.
        ValueError: on shapes or devices that do not match, an argument out of range, a file that is broken, or more
            clusters than distinct rows.

    Example:
        >>> import torch, vqkernels
        >>> x = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> vqkernels.kmeans(x, 2).centroids.sort(0).values.tolist()
        [[0.5], [10.5]]
    """
    if isinstance(x, torch.Tensor) and requested_backend(backend) is None and (device := unserved_device([x])):
        options: dict[str, Any] = {"metric": metric, "n_init": n_init, "max_iter": max_iter, "tol": tol, "seed": seed}
        options |= {"batch_size": batch_size, "max_share": max_share, "callback": callback, "progress": progress}

        def clustered(x: torch.Tensor, init: Any, weight: Any) -> KMeansResult:
            return kmeans(x, num_clusters, init=init, weight=weight, group=group, **options)

        result: KMeansResult = through_the_cpu(clustered, (x, init, weight), device)
        return result
    check_arguments(num_clusters, metric, max_iter, tol, seed, batch_size, n_init)
    init = given_init(init)
    check_group(group)
    if max_share is not None:
        _refuse(max_share, weight=weight, batch_size=batch_size)
    source, weight = open_source(x), None if weight is None else check_weight("weight", weight)
    if batch_size is not None and isinstance(source, HeldRows):
        source, weight = _shuffled(source, weight, seed)
    data = Data(source, weight, metric, backend, Processes(group))
    if num_clusters > data.total:
        raise too_many(num_clusters, data.total, "usable")

    def run(seed: int) -> KMeansResult:
        centroids = start(data, num_clusters, init, seed)
        with Progress(data.total, max_iter, shown=progress and data.processes.rank == 0) as bar:
            callbacks: list[Callback] = [bar] if callback is None else [callback, bar]
            if max_share is not None:
                first = State(centroids)
                return balanced(data, first, max_share, max_iter=max_iter, tol=tol, callbacks=callbacks)
            if batch_size is None:
                return lloyd(data, State(centroids), max_iter=max_iter, tol=tol, callbacks=callbacks)
            return minibatches(data, centroids, batch_size, max_iter=max_iter, tol=tol, callbacks=callbacks)

    starts = n_init if isinstance(init, str) else 1
    return min((run(seed + number) for number in range(starts)), key=lambda result: result.inertia)


@checked
def check_arguments(
    num_clusters: Size,
    metric: Annotated[str, OneOf(METRICS)],
    max_iter: Count,
    tol: NonNegative,
    seed: Integer,
    batch_size: Size | None = None,
    n_init: Size = 1,
) -> None:
    """Raise for what is out of range."""
    if seed > _HIGHEST_SEED - (n_init - 1):
        raise ValueError(f"seed: expected n_init seeds of 64 bits from it on, got {seed} and n_init={n_init}")


def _refuse(max_share: float, **others: object) -> None:
    for name, value in others.items():
        if value is not None:
            raise ValueError(f"{name}: expected None with max_share={max_share:g}, got {type(value).__name__}")


def _shuffled(source: HeldRows, weight: torch.Tensor | None, seed: int) -> tuple[HeldRows, torch.Tensor | None]:
    order = torch.randperm(len(source.rows), generator=torch.Generator().manual_seed(seed)).to(source.rows.device)
    return HeldRows(source.rows[order]), weight if weight is None or len(weight) != len(order) else weight[order]
