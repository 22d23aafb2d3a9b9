"""The lookups that compete: ours and what people use, on a CPU and on a GPU.

A peer is a lookup of one codebook, ``(x [N, D], codebook [K, D], **setting) -> call -> indices [N]``, which
:func:`bench.chunks.per_group` runs once per group. Whatever it can derive from the codebook alone (index, norms,
transposed copies) is made outside the clock, in its favour; ours derives everything inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bench.case import DEVICES, Call, Implementation
from bench.chunks import CHUNKS, CUDA_CHUNKS, Expanded, chunk_rows, chunked, in_chunks, per_group
from bench.nearest_code.gpu_lookups import GPU_LOOKUPS
from bench.ours import at_inference, options, ours


def canonical(problem: Any) -> Sequence[Any]:
    """What the backends of the op receive."""
    grouped = problem.codebook if problem.codebook.dim() == 3 else problem.codebook[None]
    x = problem.x.reshape(-1, grouped.shape[0], grouped.shape[2])
    return x, grouped, options(problem).get("metric", "l2")


def _faiss(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    *,
    blas_threshold: int,
) -> Call:
    import faiss

    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook.numpy())
    return lambda: faiss_search(index, x, blas_threshold)


def faiss_search(index: Any, x: torch.Tensor, blas_threshold: int) -> torch.Tensor:  # [N, D] -> [N]
    """The first answer of an index to every vector."""
    import faiss

    faiss.cvar.distance_compute_blas_threshold = blas_threshold
    return torch.from_numpy(index.search(x.numpy(), 1)[1][:, 0])


def _torch_addmm(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    *,
    pairs: int,
) -> Call:
    rows = chunk_rows(x, codebook, pairs)
    distance = Expanded(codebook, rows)
    return in_chunks(rows, lambda chunk: distance(chunk).argmin(1), x)


def _torch_folded(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    *,
    pairs: int,
) -> Call:
    # [x, 1] . [-2c, |c|^2] is the distance up to |x|^2; on the CPU min(1) is twice as fast as argmin(1)
    folded = torch.cat([-2 * codebook, codebook.square().sum(1, keepdim=True)], dim=1).t().contiguous()
    rows = chunk_rows(x, codebook, pairs)
    buffer = codebook.new_empty(rows, codebook.shape[0])

    def lookup(chunk: torch.Tensor) -> torch.Tensor:
        ones = torch.nn.functional.pad(chunk, (0, 1), value=1.0)
        return torch.mm(ones, folded, out=buffer[: chunk.shape[0]]).min(1).indices

    return in_chunks(rows, lookup, x)


def _torch_cdist(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    *,
    pairs: int,
) -> Call:
    return in_chunks(chunk_rows(x, codebook, pairs), lambda chunk: torch.cdist(chunk, codebook).argmin(1), x)


def _torch_compile(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    *,
    pairs: int,
    form: str,
) -> Call:
    def expanded(chunk: torch.Tensor) -> torch.Tensor:
        return (norms - 2 * chunk @ codebook.t()).argmin(1)

    def direct(chunk: torch.Tensor) -> torch.Tensor:
        return (chunk[:, None] - codebook).square().sum(2).argmin(1)

    norms = codebook.square().sum(1)
    torch.compiler.reset()  # past a few shapes of one function it would silently run it uncompiled
    lookup = torch.compile({"expanded": expanded, "direct": direct}[form], dynamic=False)
    return in_chunks(chunk_rows(x, codebook, pairs), lookup, x)


def _sklearn_argmin(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
) -> Call:
    import sklearn
    from sklearn.metrics import pairwise_distances_argmin

    def call() -> torch.Tensor:
        with sklearn.config_context(assume_finite=True):
            return torch.from_numpy(pairwise_distances_argmin(x.numpy(), codebook.numpy()))

    return call


def _sklearn_kmeans(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
) -> Call:
    import sklearn
    from sklearn.cluster import KMeans

    model = KMeans(codebook.shape[0])
    # a model with these centers, without the fit that would be needed to reach them
    model.cluster_centers_, model._n_threads = codebook.numpy(), torch.get_num_threads()

    def call() -> torch.Tensor:
        with sklearn.config_context(assume_finite=True):
            return torch.from_numpy(model.predict(x.numpy())).long()

    return call


def vector_quantize_pytorch(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    *,
    pairs: int,
    **options: Any,
) -> Call:
    """The quantizer of this library, made with the options."""
    from vector_quantize_pytorch import VectorQuantize

    num_codes, dim = codebook.shape
    quantizer = VectorQuantize(dim=dim, codebook_size=num_codes, **options).to(x.device).eval().requires_grad_(False)
    quantizer.codebook = codebook
    return in_chunks(chunk_rows(x, codebook, pairs), lambda chunk: quantizer(chunk[None])[1][0], x)


LOOKUPS = (
    *ours("nearest_code", canonical),
    Implementation(
        "faiss",
        "faiss",
        per_group(_faiss),
        ({"blas_threshold": 128_000},),
        note="IndexFlatL2.search as it comes; index built outside the clock",
    ),
    Implementation(
        "faiss tuned",
        "faiss",
        per_group(_faiss),
        ({"blas_threshold": 0},),
        note="distance_compute_blas_threshold = 0: never the sequential path that small N * D falls into",
    ),
    Implementation(
        "torch addmm+argmin",
        "torch",
        per_group(_torch_addmm),
        chunked(*CHUNKS),
        chunked(*CUDA_CHUNKS),
        note="the usual PyTorch code, chunked over N, one buffer, norms outside the clock",
        devices=DEVICES,
    ),
    Implementation(
        "torch tuned",
        "torch",
        per_group(_torch_folded),
        chunked(*CHUNKS),
        chunked(*CUDA_CHUNKS),
        note="norms folded into one matrix product, min(1) in place of argmin(1), chunked over N",
        devices=DEVICES,
    ),
    Implementation(
        "torch.cdist+argmin",
        "torch",
        per_group(_torch_cdist),
        chunked(*CHUNKS),
        chunked(*CUDA_CHUNKS),
        note="chunked over N so that memory stays bounded",
        devices=DEVICES,
    ),
    Implementation(
        "torch.compile",
        "torch",
        per_group(_torch_compile),
        (*chunked(1 << 22, form="expanded"), *chunked(1 << 22, form="direct")),
        (*chunked(1 << 28, form="expanded"), *chunked(1 << 28, form="direct")),
        flag="--compile",
        note="inductor; the faster of the expanded and the direct form, chunked over N",
        devices=DEVICES,
    ),
    Implementation(
        "sklearn argmin",
        "sklearn",
        per_group(_sklearn_argmin),
        note="pairwise_distances_argmin, float32, no checks",
    ),
    Implementation(
        "sklearn KMeans", "sklearn", per_group(_sklearn_kmeans), note="KMeans.predict, float32, no checks"
    ),
    Implementation(
        "vector-quantize-pytorch",
        "vector_quantize_pytorch",
        per_group(vector_quantize_pytorch),
        chunked(*CHUNKS[1:]),
        chunked(*CUDA_CHUNKS),
        note="VectorQuantize.eval() forward (lookup and gather), chunked over N so that memory stays bounded",
        devices=DEVICES,
    ),
    *GPU_LOOKUPS,
)

# where the codes stay what they are from call to call
INFERENCE_LOOKUPS = at_inference("nearest_code", LOOKUPS)
