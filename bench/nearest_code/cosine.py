"""Lookups by cosine: ours, and peers that normalise the vectors in every call and the codes outside the clock."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from bench.case import DEVICES, Call, Implementation
from bench.chunks import CHUNKS, CUDA_CHUNKS, chunk_rows, chunked, in_chunks, per_group
from bench.nearest_code.lookups import canonical, faiss_search, vector_quantize_pytorch
from bench.ours import at_inference, ours


class CosineProblem(NamedTuple):
    """Vectors, and a codebook of which each wants the code of the largest cosine."""

    x: torch.Tensor  # [N, D] or [N, G, D]
    codebook: torch.Tensor  # [K, D] or [G, K, D]

    @property
    def options(self) -> dict[str, Any]:
        """What the op is told besides the tensors."""
        return {"metric": "cosine"}


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)


def _faiss(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    *,
    blas_threshold: int,
) -> Call:
    import faiss

    index = faiss.IndexFlatIP(codebook.shape[1])
    index.add(_unit(codebook).numpy())
    return lambda: faiss_search(index, _unit(x), blas_threshold)


def _torch(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    *,
    pairs: int,
    largest: Callable[[torch.Tensor], torch.Tensor],
) -> Call:
    rows, codes = chunk_rows(x, codebook, pairs), _unit(codebook).t()
    buffer = codebook.new_empty(rows, codebook.shape[0])

    def lookup(chunk: torch.Tensor) -> torch.Tensor:
        return largest(torch.mm(_unit(chunk), codes, out=buffer[: chunk.shape[0]]))

    return in_chunks(rows, lookup, x)


def _vector_quantize_pytorch(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    *,
    pairs: int,
) -> Call:
    return vector_quantize_pytorch(x, _unit(codebook), pairs=pairs, use_cosine_sim=True)


def _argmax(cosines: torch.Tensor) -> torch.Tensor:
    return cosines.argmax(1)


def _max(cosines: torch.Tensor) -> torch.Tensor:
    return cosines.max(1).indices


COSINE_LOOKUPS = (
    *ours("nearest_code", canonical),
    Implementation(
        "faiss",
        "faiss",
        per_group(_faiss),
        ({"blas_threshold": 128_000},),
        note="IndexFlatIP.search of unit vectors as it comes; index built outside the clock",
    ),
    Implementation(
        "faiss tuned",
        "faiss",
        per_group(_faiss),
        ({"blas_threshold": 0},),
        note="distance_compute_blas_threshold = 0: never the sequential path that small N * D falls into",
    ),
    Implementation(
        "torch mm+argmax",
        "torch",
        per_group(partial(_torch, largest=_argmax)),
        chunked(*CHUNKS),
        chunked(*CUDA_CHUNKS),
        note="the usual PyTorch code, chunked over N, one buffer, codes normalised outside the clock",
        devices=DEVICES,
    ),
    Implementation(
        "torch tuned",
        "torch",
        per_group(partial(_torch, largest=_max)),
        chunked(*CHUNKS),
        chunked(*CUDA_CHUNKS),
        note="the same with max(1) in place of argmax(1)",
        devices=DEVICES,
    ),
    Implementation(
        "vector-quantize-pytorch",
        "vector_quantize_pytorch",
        per_group(_vector_quantize_pytorch),
        chunked(*CHUNKS[1:]),
        chunked(*CUDA_CHUNKS),
        note="VectorQuantize(use_cosine_sim=True).eval() forward, chunked over N so that memory stays bounded",
        devices=DEVICES,
    ),
)

FIXED_COSINE_LOOKUPS = at_inference("nearest_code", COSINE_LOOKUPS)
