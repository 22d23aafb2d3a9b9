"""The peers that exist on a GPU alone. What each prepares outside the clock depends on the codebook alone."""

from __future__ import annotations

import importlib

import torch

from bench.case import Call, Implementation, needs_cuda
from bench.chunks import per_group


def _flash_kmeans(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    *,
    dtype: str,
) -> Call:
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    rounded = getattr(torch, dtype)
    codes = codebook[None].to(rounded)
    code_norms = codes.float().square().sum(2)

    def call() -> torch.Tensor:
        # the vectors are new in every step: their cast and norms are part of the work
        rows = x[None].to(rounded)
        norms = rows.float().square().sum(2)
        indices: torch.Tensor = euclid_assign_triton(rows, codes, norms, c_sq=code_norms)[0].long()
        return indices

    return call


def _faiss_gpu(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
) -> Call:
    import faiss

    importlib.import_module("faiss.contrib.torch_utils")  # lets an index take tensors
    resources = faiss.StandardGpuResources()
    index = faiss.GpuIndexFlatL2(resources, codebook.shape[1])
    index.add(codebook)
    return lambda: index.search(x, 1)[1][:, 0]


def _keops(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
) -> Call:
    from pykeops.torch import LazyTensor

    codes = LazyTensor(codebook[None])
    return lambda: ((LazyTensor(x[:, None]) - codes) ** 2).sum(-1).argmin(dim=1)[:, 0]


def _cuvs(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
) -> Call:
    from cuvs.neighbors import brute_force

    index = brute_force.build(codebook, metric="sqeuclidean")
    return lambda: torch.as_tensor(brute_force.search(index, x, 1)[1], device=x.device)[:, 0].long()


def faiss_without_gpu(device: str) -> str:
    """Why an installed faiss cannot run on the GPU, or the empty string."""
    if obstacle := needs_cuda(device):
        return obstacle
    faiss = importlib.import_module("faiss")
    return "" if hasattr(faiss, "StandardGpuResources") else "the faiss installed is faiss-cpu"


GPU_LOOKUPS = (
    Implementation(
        "flash-kmeans fp32",
        "flash_kmeans",
        per_group(_flash_kmeans),
        ({"dtype": "float32"},),
        note="euclid_assign_triton on float32: its products are TF32, so it is not exact",
        devices=("cuda",),
        arithmetic="tf32",
        obstacle=needs_cuda,
    ),
    Implementation(
        "flash-kmeans fp16",
        "flash_kmeans",
        per_group(_flash_kmeans),
        ({"dtype": "float16"},),
        note="euclid_assign_triton on vectors and codes rounded to float16, the form its authors publish",
        devices=("cuda",),
        arithmetic="fp16",
        obstacle=needs_cuda,
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
        "KeOps argmin",
        "pykeops",
        per_group(_keops),
        note="LazyTensor, the direct float32 form; compiled before the clock starts",
        devices=("cuda",),
        obstacle=needs_cuda,
        own_memory=True,
    ),
    Implementation(
        "cuVS brute force",
        "cuvs",
        per_group(_cuvs),
        note="neighbors.brute_force with one neighbour, index built outside the clock",
        devices=("cuda",),
        obstacle=needs_cuda,
        own_memory=True,
    ),
)
