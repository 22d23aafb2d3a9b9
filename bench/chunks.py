"""What the peers that fill a distance matrix share: chunks of N, one codebook at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.case import Call

CHUNKS = (1 << 24, 1 << 22, 1 << 20)  # pairs held at once, worth trying on a CPU
CUDA_CHUNKS = (1 << 30, 1 << 28, 1 << 26)  # the same on a GPU, up to 4 GiB of distances
_MIN_ROWS = 64  # a product of fewer rows spends its time reading the codebook


def chunked(*pairs: int, **fixed: Any) -> tuple[dict[str, Any], ...]:
    """Settings of a peer that takes ``pairs``."""
    return tuple({"pairs": size, **fixed} for size in pairs)


def chunk_rows(x: torch.Tensor, codebook: torch.Tensor, pairs: int) -> int:
    """Rows of ``x [N, D]`` whose distances to ``codebook [K, D]`` are held at once."""
    return max(1, min(x.shape[0], max(_MIN_ROWS, pairs // codebook.shape[0])))


def in_chunks(
    rows: int,
    lookup: Callable[..., torch.Tensor],  # [n, D], ... -> [n, ...]
    *tensors: torch.Tensor,  # [N, D], ...
) -> Call:
    """Split N so that the distances of only ``rows`` vectors exist at a time."""
    chunks = list(zip(*(tensor.split(rows) for tensor in tensors), strict=True))
    return lambda: torch.cat([lookup(*chunk) for chunk in chunks])


def per_group(lookup: Callable[..., Call]) -> Callable[..., Call]:
    """Turn a lookup of one codebook into one of a problem ``(x, codebook, ...)``, grouped or not."""

    def prepare(problem: Any, **setting: Any) -> Call:
        x, codebook, *more = problem
        if codebook.dim() == 2:
            return lookup(x, codebook, *more, **setting)
        pairs = zip(x.unbind(1), codebook, strict=True)
        calls = [lookup(rows.contiguous(), codes, *more, **setting) for rows, codes in pairs]
        return lambda: torch.stack([call() for call in calls], dim=1)

    return prepare


class Expanded:
    """``|c|^2 - 2 x.c`` in one buffer for all chunks: allocating each anew costs more than filling it."""

    def __init__(self, codebook: torch.Tensor, rows: int) -> None:
        self.codes, self.norms = codebook.t(), codebook.square().sum(1)
        self.buffer = codebook.new_empty(rows, codebook.shape[0])

    def __call__(self, chunk: torch.Tensor) -> torch.Tensor:  # [n, D] -> [n, K]
        return torch.addmm(self.norms, chunk, self.codes, alpha=-2, out=self.buffer[: chunk.shape[0]])
