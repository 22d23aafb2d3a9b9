"""The peers that prune pairs by a statistical test on leading dimensions, and so assign some rows wrongly.

Neither takes centroids to start from: both draw rows by a generator of their own. So the rows are handed over in an
order in which those that they draw are the start; the order means nothing else to k-means.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from bench.case import Call, Implementation
from bench.kmeans.problem import ClusterProblem

_SEED = 42


class Pruned(NamedTuple):
    """Centroids, and where such a peer puts the rows once they are known."""

    centroids: torch.Tensor  # [K, D]
    rows: torch.Tensor  # [N, D], in its order
    labels: Callable[[], torch.Tensor]  # -> [N]


def superkmeans_draw(n: int, k: int) -> np.ndarray:  # [K]
    """The rows that ``superkmeans`` starts from: the first of the shuffle by which it also samples."""
    shuffle = importlib.import_module("superkmeans").SuperKMeans(
        1, 1, hierarchical=False, iters=1, sampling_fraction=0.9, max_points_per_cluster=n, n_threads=1, seed=_SEED
    )
    shuffle.train(np.arange(n, dtype=np.float32)[:, None])
    return shuffle.sampled_indices[:k].astype(np.int64)


def faiss_draw(n: int, k: int) -> np.ndarray:  # [K]
    """The rows that k-means of faiss starts from."""
    faiss = importlib.import_module("faiss")
    permutation = np.empty(n, dtype=np.int32)
    faiss.rand_perm(faiss.swig_ptr(permutation), n, _SEED + 1)
    return permutation[:k].astype(np.int64)


def ordered(problem: ClusterProblem, drawn: np.ndarray) -> np.ndarray:  # [K] -> [N, D]
    """The rows of a problem, those of its start at the places that will be drawn."""
    x = problem.array()
    place = {row.tobytes(): number for number, row in enumerate(x)}
    first = np.array([place[row.tobytes()] for row in problem.start.numpy()])
    order = np.empty(len(x), dtype=np.int64)
    others = np.setdiff1d(np.arange(len(x)), drawn)
    order[drawn], order[others] = first, np.setdiff1d(np.arange(len(x)), first)
    return x[order]


def _superkmeans(problem: ClusterProblem) -> Call:
    superkmeans = importlib.import_module("superkmeans")
    k, d = problem.start.shape
    x = ordered(problem, superkmeans_draw(len(problem.x), k))

    def call() -> Pruned:
        model = superkmeans.SuperKMeans(
            k,
            d,
            hierarchical=False,
            iters=problem.iterations,
            sampling_fraction=1.0,
            max_points_per_cluster=len(x),
            early_termination=False,
            n_threads=torch.get_num_threads(),
            seed=_SEED,
        )
        centroids = model.train(x)

        def labels() -> torch.Tensor:
            # as in its iterations; where those do not prune, it is the same as the other, which does not warn
            pruned = not all(stats.is_gemm_only for stats in model.iteration_stats[1:])
            found = model.assign_training_points(x, centroids) if pruned else model.assign(x, centroids)
            return torch.from_numpy(found.astype(np.int64))

        return Pruned(torch.from_numpy(centroids), torch.from_numpy(x), labels)

    return call


def _faiss(problem: ClusterProblem) -> Call:
    faiss = importlib.import_module("faiss")
    k, d = problem.start.shape
    x = ordered(problem, faiss_draw(len(problem.x), k))

    def call() -> torch.Tensor:
        model = faiss.SuperKmeans(
            d, k, niter=problem.iterations, max_points_per_centroid=len(x), min_points_per_centroid=1, seed=_SEED
        )
        model.train(x)
        return torch.from_numpy(model.centroids)

    return call


def _faiss_without(_: str) -> str:
    faiss = importlib.import_module("faiss")
    return "" if hasattr(faiss, "SuperKmeans") else f"faiss {faiss.__version__} has no SuperKmeans"


SUPERKMEANS = Implementation(
    "superkmeans",
    "superkmeans",
    _superkmeans,
    note="float32, all rows, no early stop; prunes where D >= 128 and K > 128, else BLAS alone",
)
FAISS_SUPER = Implementation(
    "faiss.SuperKmeans", "faiss", _faiss, note="without its subsampling", obstacle=_faiss_without
)
