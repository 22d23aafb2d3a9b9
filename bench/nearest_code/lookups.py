"""The lookups that compete: ours and what people use on a CPU.

A peer is a lookup of one codebook, ``(x [N, D], codebook [K, D], **setting) -> call -> indices [N]``, which
:func:`_per_group` runs once per group. Whatever it can derive from the codebook alone (index, norms,
transposed copies) is made outside the clock, in its favour; ours derives everything inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import vqkernels
from bench.case import Call, Implementation
from vqkernels.testing import LookupProblem

_CHUNKS = (1 << 24, 1 << 22, 1 << 20)  # pairs held at once by the peers that fill a distance matrix
_MIN_CHUNK_ROWS = 64  # a product of fewer rows spends its time reading the codebook


def _vqkernels(problem: LookupProblem) -> Call:
    return lambda: vqkernels.nearest_code(problem.x, problem.codebook).indices


def _per_group(lookup: Callable[..., Call]) -> Callable[..., Call]:
    """Turn a lookup of one codebook into one of a problem, grouped or not."""

    def prepare(problem: LookupProblem, **setting: Any) -> Call:
        if problem.codebook.dim() == 2:
            return lookup(problem.x, problem.codebook, **setting)
        pairs = zip(problem.x.unbind(1), problem.codebook, strict=True)
        calls = [lookup(x.contiguous(), codebook, **setting) for x, codebook in pairs]
        return lambda: torch.stack([call() for call in calls], dim=1)

    return prepare


def _chunk_rows(codebook: torch.Tensor, pairs: int) -> int:
    return max(_MIN_CHUNK_ROWS, pairs // codebook.shape[0])


def _in_chunks(
    x: torch.Tensor,  # [N, D]
    rows: int,
    lookup: Callable[[torch.Tensor], torch.Tensor],  # [n, D] -> [n]
) -> Call:
    """Split N so that the distances of only ``rows`` vectors exist at a time."""
    chunks = x.split(rows)
    return lambda: torch.cat([lookup(chunk) for chunk in chunks])


def _faiss(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    *,
    blas_threshold: int,
) -> Call:
    import faiss

    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook.numpy())
    queries = x.numpy()

    def call() -> torch.Tensor:
        faiss.cvar.distance_compute_blas_threshold = blas_threshold
        return torch.from_numpy(index.search(queries, 1)[1][:, 0])

    return call


def _torch_addmm(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    *,
    pairs: int,
) -> Call:
    norms = codebook.square().sum(1)
    # one buffer for all chunks: allocating each anew costs more than filling it
    rows = _chunk_rows(codebook, pairs)
    buffer = codebook.new_empty(rows, codebook.shape[0])

    def lookup(chunk: torch.Tensor) -> torch.Tensor:
        distance = torch.addmm(norms, chunk, codebook.t(), alpha=-2, out=buffer[: chunk.shape[0]])
        return distance.argmin(1)

    return _in_chunks(x, rows, lookup)


def _torch_folded(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    *,
    pairs: int,
) -> Call:
    # [x, 1] . [-2c, |c|^2] is the distance up to |x|^2; on the CPU min(1) is twice as fast as argmin(1)
    folded = torch.cat([-2 * codebook, codebook.square().sum(1, keepdim=True)], dim=1).t().contiguous()
    rows = _chunk_rows(codebook, pairs)
    buffer = codebook.new_empty(rows, codebook.shape[0])

    def lookup(chunk: torch.Tensor) -> torch.Tensor:
        ones = torch.nn.functional.pad(chunk, (0, 1), value=1.0)
        return torch.mm(ones, folded, out=buffer[: chunk.shape[0]]).min(1).indices

    return _in_chunks(x, rows, lookup)


def _torch_cdist(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    *,
    pairs: int,
) -> Call:
    return _in_chunks(x, _chunk_rows(codebook, pairs), lambda chunk: torch.cdist(chunk, codebook).argmin(1))


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
    return _in_chunks(x, _chunk_rows(codebook, pairs), lookup)


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


def _vector_quantize_pytorch(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    *,
    pairs: int,
) -> Call:
    from vector_quantize_pytorch import VectorQuantize

    num_codes, dim = codebook.shape
    quantizer = VectorQuantize(dim=dim, codebook_size=num_codes).eval().requires_grad_(False)
    quantizer.codebook = codebook
    return _in_chunks(x, _chunk_rows(codebook, pairs), lambda chunk: quantizer(chunk[None])[1][0])


def _chunked(*pairs: int, **fixed: Any) -> tuple[dict[str, Any], ...]:
    return tuple({"pairs": size, **fixed} for size in pairs)


LOOKUPS = (
    Implementation("vqkernels", "vqkernels", _vqkernels, ours=True, note="codebook packed inside the clock"),
    Implementation(
        "faiss",
        "faiss",
        _per_group(_faiss),
        ({"blas_threshold": 128_000},),
        note="IndexFlatL2.search as it comes; index built outside the clock",
    ),
    Implementation(
        "faiss tuned",
        "faiss",
        _per_group(_faiss),
        ({"blas_threshold": 0},),
        note="distance_compute_blas_threshold = 0: never the sequential path that small N * D falls into",
    ),
    Implementation(
        "torch addmm+argmin",
        "torch",
        _per_group(_torch_addmm),
        _chunked(*_CHUNKS),
        note="the usual PyTorch code, chunked over N, one buffer, norms outside the clock",
    ),
    Implementation(
        "torch tuned",
        "torch",
        _per_group(_torch_folded),
        _chunked(*_CHUNKS),
        note="norms folded into one matrix product, min(1) in place of argmin(1), chunked over N",
    ),
    Implementation(
        "torch.cdist+argmin",
        "torch",
        _per_group(_torch_cdist),
        _chunked(*_CHUNKS),
        note="chunked over N so that memory stays bounded",
    ),
    Implementation(
        "torch.compile",
        "torch",
        _per_group(_torch_compile),
        (*_chunked(1 << 22, form="expanded"), *_chunked(1 << 22, form="direct")),
        flag="--compile",
        note="inductor; the faster of the expanded and the direct form, chunked over N",
    ),
    Implementation(
        "sklearn argmin",
        "sklearn",
        _per_group(_sklearn_argmin),
        note="pairwise_distances_argmin, float32, no checks",
    ),
    Implementation(
        "sklearn KMeans", "sklearn", _per_group(_sklearn_kmeans), note="KMeans.predict, float32, no checks"
    ),
    Implementation(
        "vector-quantize-pytorch",
        "vector_quantize_pytorch",
        _per_group(_vector_quantize_pytorch),
        _chunked(*_CHUNKS[1:]),
        note="VectorQuantize.eval() forward (lookup and gather), chunked over N so that memory stays bounded",
    ),
)
