"""The k-means that compete: ``problem -> call -> centroids [K, D]`` after the same iterations from the same start."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

import vqkernels
from bench.case import DEVICES, Call, Implementation, needs_cuda
from bench.chunks import CUDA_CHUNKS, Expanded, chunk_rows, chunked
from bench.kmeans.problem import ClusterProblem
from bench.ours import ours


def _canonical(problem: ClusterProblem) -> Sequence[Any]:
    """What the backends of the lookup receive, but for the number of vectors."""
    return problem.part(0, 1)[:, None], problem.start[None], "l2"


def _ours(backend: str | None, problem: ClusterProblem) -> Call:
    def call() -> torch.Tensor:
        k, moves = len(problem.start), problem.iterations
        x = problem.source()
        return vqkernels.kmeans(x, k, init=problem.start, max_iter=moves, tol=0.0, backend=backend).centroids

    return call


def _faiss(problem: ClusterProblem) -> Call:
    faiss = importlib.import_module("faiss")
    k, d = problem.start.shape
    x, start = problem.array(), problem.start.numpy()

    def call() -> torch.Tensor:
        # every vector takes part, and nothing is said about few of them per centroid
        model = faiss.Kmeans(
            d, k, niter=problem.iterations, max_points_per_centroid=len(x), min_points_per_centroid=1
        )
        model.train(x, init_centroids=start)
        return torch.from_numpy(model.centroids)

    return call


def _sklearn(problem: ClusterProblem, *, algorithm: str) -> Call:
    cluster = importlib.import_module("sklearn.cluster")
    x, start = problem.array(), problem.start.numpy()

    def call() -> torch.Tensor:
        model = cluster.KMeans(
            len(start), init=start, n_init=1, max_iter=problem.iterations, tol=0.0, algorithm=algorithm
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it did not converge, as was asked
            return torch.from_numpy(model.fit(x).cluster_centers_)

    return call


def _flash_kmeans(problem: ClusterProblem, *, dtype: str) -> Call:
    flash = importlib.import_module("flash_kmeans")
    rounded = getattr(torch, dtype)

    def call() -> torch.Tensor:
        x, start = (tensor.to(rounded)[None] for tensor in (problem.x, problem.start))
        options = {"max_iters": problem.iterations, "tol": 0.0, "init_centroids": start}
        centroids: torch.Tensor = flash.batch_kmeans_Euclid(x, len(problem.start), **options)[1]
        return centroids[0].float()

    return call


def _fast_pytorch_kmeans(problem: ClusterProblem) -> Call:
    peer = importlib.import_module("fast_pytorch_kmeans")

    def call() -> torch.Tensor:
        model = peer.KMeans(len(problem.start), max_iter=problem.iterations, tol=-1.0)  # it never stops early
        model.fit(problem.x, problem.start)
        centroids: torch.Tensor = model.centroids
        return centroids

    return call


def _torch(problem: ClusterProblem, *, pairs: int) -> Call:
    """The usual code: chunks of distances in one buffer, minimum, index_add_."""
    rows = chunk_rows(problem.x, problem.start, pairs)

    def chunks() -> Iterator[torch.Tensor]:
        for begin in range(0, len(problem.x), rows):
            yield problem.part(begin, begin + rows)

    def call() -> torch.Tensor:
        centroids = problem.start
        for _ in range(problem.iterations):
            distance = Expanded(centroids, rows)
            count, total = torch.zeros_like(centroids[:, 0]), torch.zeros_like(centroids)
            for chunk in chunks():
                indices = distance(chunk).min(dim=1).indices
                total.index_add_(0, indices, chunk)
                count.index_add_(0, indices, torch.ones_like(chunk[:, 0]))
            centroids = torch.where(count[:, None] > 0, total / count[:, None], centroids)
        return centroids

    return call


OURS = ours("kmeans", _canonical, _ours)  # one pass more than iterations, for the inertia of the result
ELKAN = Implementation("sklearn elkan", "sklearn", _sklearn, ({"algorithm": "elkan"},), note="N x K bounds")
FAST_PYTORCH = Implementation(
    "fast-pytorch-kmeans",
    "fast_pytorch_kmeans",
    _fast_pytorch_kmeans,
    note="float32; sums by a K x N mask",
    devices=("cuda",),
)
CONTESTANTS = (
    *OURS,
    Implementation("faiss.Kmeans", "faiss", _faiss, note="without its subsampling"),
    Implementation("sklearn lloyd", "sklearn", _sklearn, ({"algorithm": "lloyd"},)),
    Implementation(
        "torch chunked",
        "torch",
        _torch,
        chunked(1 << 22),  # a run takes too long to try others; 2^20 was as quick
        chunked(*CUDA_CHUNKS),
        note="as flash-kmeans does, without its kernels",
        devices=DEVICES,
    ),
    Implementation(
        "flash-kmeans fp32",
        "flash_kmeans",
        _flash_kmeans,
        ({"dtype": "float32"},),
        note="batch_kmeans_Euclid on float32: its products are TF32",
        devices=("cuda",),
        arithmetic="tf32",
        obstacle=needs_cuda,
    ),
    Implementation(
        "flash-kmeans fp16",
        "flash_kmeans",
        _flash_kmeans,
        ({"dtype": "float16"},),
        note="batch_kmeans_Euclid on vectors and centroids rounded to float16",
        devices=("cuda",),
        arithmetic="fp16",
        obstacle=needs_cuda,
    ),
)
