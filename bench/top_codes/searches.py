"""The searches that compete: ours and what people use, on a CPU and on a GPU.

A peer is ``(x [N, D], codebook [K, D], m, **setting) -> call -> indices [N, M]``, nearest first. As in the lookup,
what depends on the codebook alone is made outside the clock for peers, inside for ours.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch

from bench.case import DEVICES, Call, Implementation, needs_cuda
from bench.chunks import CHUNKS, CUDA_CHUNKS, Expanded, chunk_rows, chunked, in_chunks, per_group
from bench.nearest_code.gpu_lookups import faiss_without_gpu
from bench.ours import ours
from bench.top_codes.problem import TopProblem


def canonical(problem: TopProblem) -> Sequence[Any]:
    """What the backends of the op receive."""
    return problem.x[:, None], problem.codebook[None], problem.m, "l2"


def _faiss(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    m: int,
    *,
    blas_threshold: int,
) -> Call:
    import faiss

    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook.numpy())
    queries = x.numpy()

    def call() -> torch.Tensor:
        faiss.cvar.distance_compute_blas_threshold = blas_threshold
        return torch.from_numpy(index.search(queries, m)[1])

    return call


def _torch_addmm(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    m: int,
    *,
    pairs: int,
) -> Call:
    rows = chunk_rows(x, codebook, pairs)
    distance = Expanded(codebook, rows)
    return in_chunks(rows, lambda chunk: distance(chunk).topk(m, dim=1, largest=False).indices, x)


def _torch_cdist(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    m: int,
    *,
    pairs: int,
) -> Call:
    def search(chunk: torch.Tensor) -> torch.Tensor:
        return torch.cdist(chunk, codebook).topk(m, dim=1, largest=False).indices

    return in_chunks(chunk_rows(x, codebook, pairs), search, x)


def _sklearn(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    m: int,
    *,
    algorithm: str,
) -> Call:
    import sklearn
    from sklearn.neighbors import NearestNeighbors

    model = NearestNeighbors(n_neighbors=m, algorithm=algorithm, n_jobs=torch.get_num_threads())
    model.fit(codebook.numpy())

    def call() -> torch.Tensor:
        with sklearn.config_context(assume_finite=True):
            return torch.from_numpy(model.kneighbors(x.numpy(), return_distance=False))

    return call


def _faiss_gpu(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    m: int,
) -> Call:
    import faiss

    importlib.import_module("faiss.contrib.torch_utils")  # lets an index take tensors
    index = faiss.GpuIndexFlatL2(faiss.StandardGpuResources(), codebook.shape[1])
    index.add(codebook)
    return lambda: index.search(x, m)[1]


def _cuvs(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    m: int,
) -> Call:
    from cuvs.neighbors import brute_force

    index = brute_force.build(codebook, metric="sqeuclidean")
    return lambda: torch.as_tensor(brute_force.search(index, x, m)[1], device=x.device).long()


def _keops(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    m: int,
) -> Call:
    from pykeops.torch import LazyTensor

    codes = LazyTensor(codebook[None])
    return lambda: ((LazyTensor(x[:, None]) - codes) ** 2).sum(-1).argKmin(m, dim=1)


_COMMON = (
    *ours("top_codes", canonical),
    Implementation(
        "faiss",
        "faiss",
        per_group(_faiss),
        ({"blas_threshold": 128_000}, {"blas_threshold": 0}),
        note="IndexFlatL2.search; index built outside the clock; with and without its sequential path",
    ),
    Implementation(
        "torch addmm+topk",
        "torch",
        per_group(_torch_addmm),
        chunked(*CHUNKS),
        chunked(*CUDA_CHUNKS),
        note="the usual PyTorch code, chunked over N, one buffer, norms outside the clock",
        devices=DEVICES,
    ),
    Implementation(
        "torch.cdist+topk",
        "torch",
        per_group(_torch_cdist),
        chunked(*CHUNKS),
        chunked(*CUDA_CHUNKS),
        note="chunked over N so that memory stays bounded",
        devices=DEVICES,
    ),
    Implementation(
        "sklearn brute",
        "sklearn",
        per_group(_sklearn),
        ({"algorithm": "brute"},),
        note="NearestNeighbors, which accumulates in float64",
    ),
    Implementation(
        "faiss-gpu",
        "faiss",
        per_group(_faiss_gpu),
        note="GpuIndexFlatL2.search on device tensors, index built outside the clock",
        devices=("cuda",),
        obstacle=faiss_without_gpu,
        own_memory=True,
    ),
    Implementation(
        "cuVS brute force",
        "cuvs",
        per_group(_cuvs),
        note="neighbors.brute_force, index built outside the clock",
        devices=("cuda",),
        obstacle=needs_cuda,
        own_memory=True,
    ),
)

# a tree helps where vectors are short
SHORT_SEARCHES = (
    *_COMMON,
    Implementation(
        "sklearn kd_tree",
        "sklearn",
        per_group(_sklearn),
        ({"algorithm": "kd_tree"},),
        note="NearestNeighbors; tree built outside the clock",
    ),
)
# KeOps keeps the M best in registers, one after the other
FEW_SEARCHES = (
    *_COMMON,
    Implementation(
        "KeOps argKmin",
        "pykeops",
        per_group(_keops),
        note="LazyTensor, the direct float32 form; compiled before the clock starts",
        devices=("cuda",),
        obstacle=needs_cuda,
        own_memory=True,
    ),
)
