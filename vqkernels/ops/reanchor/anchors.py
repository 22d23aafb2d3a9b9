"""Which vector of a batch a code would move to."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vqkernels._core.canonical import without_last_bits
from vqkernels._core.devices import widest
from vqkernels._core.random import random_integers
from vqkernels.ops.draw_rows import draw_rows
from vqkernels.ops.gather_codes import gather_codes
from vqkernels.ops.nearest_code import nearest_code
from vqkernels.ops.reanchor.op import race_rows_op


class Anchors(NamedTuple):
    """One vector per code, and the number by which anchors of several processes compete.

    The last 16 bits of a key are zero: room for the rank of a process.
    """

    vectors: torch.Tensor  # [G, K, D], dtype of x
    key: torch.Tensor  # [G, K] float64, the least wins; inf = there is no vector to move to


def closest_vectors(
    codebook: torch.Tensor,  # [G, K, D]
    x: torch.Tensor,  # [N, G, D]
    indices: torch.Tensor,  # [N, G], -1 = not a candidate
    metric: str,
    backend: str | None = None,
) -> Anchors:
    """The vector nearest to each code: the lookup with its roles exchanged."""
    candidates = _candidates(x, indices)
    nearest = nearest_code(codebook.transpose(0, 1), candidates, metric=metric, backend=backend).indices
    vectors = _take(candidates, nearest, backend)
    dtype = widest(vectors.device)
    # more digits than a lookup reports, for those who compare anchors of several processes
    key = without_last_bits(_distance(codebook.to(dtype), vectors.to(dtype), metric))
    return Anchors(vectors, torch.where(key.isfinite(), key, torch.inf))


def drawn_vectors(
    codebook: torch.Tensor,  # [G, K, D]
    x: torch.Tensor,  # [N, G, D]
    indices: torch.Tensor,  # [N, G], -1 = not a candidate
    metric: str,
    seed: torch.Tensor | int,
    backend: str | None = None,
) -> Anchors:
    """A vector drawn for each code, with a probability proportional to exp(-distance); see ops/draw_rows."""
    seeds = random_integers(seed, (x.shape[1],), x.device)
    usable = indices >= 0
    drawn = [
        draw_rows([codebook[g]], [x[:, g]], usable[:, g], seed=seeds[g], metric=metric, backend=backend)
        for g in range(x.shape[1])
    ]
    rows, key = (torch.stack(each) for each in zip(*drawn, strict=True))
    return Anchors(_take(_candidates(x, indices), rows.transpose(0, 1), backend), key)


def random_vectors(
    x: torch.Tensor,  # [N, G, D]
    indices: torch.Tensor,  # [N, G], -1 = not a candidate
    waiting: torch.Tensor,  # [G, K] bool, the codes that need one
    seed: torch.Tensor | int,
    backend: str | None = None,
) -> Anchors:
    """A random vector for each waiting code that one falls to, never one vector for two codes.

    The bits of a vector draw the code that it falls to, and the code takes the least of the numbers drawn: with N
    vectors and M codes waiting, about one in exp(N / M) gets none and waits on.
    """
    number = torch.as_tensor(seed, dtype=torch.int64, device=x.device)
    rows, key = race_rows_op(x, indices >= 0, waiting.sum(dim=1), waiting.shape[1], number)
    slot = (waiting.cumsum(dim=1) - 1).clamp(min=0)
    rows, key = rows.gather(1, slot), key.gather(1, slot)
    return Anchors(
        _take(_candidates(x, indices), rows.transpose(0, 1), backend), key.masked_fill(~waiting, torch.inf)
    )


def _distance(a: torch.Tensor, b: torch.Tensor, metric: str) -> torch.Tensor:  # [..., D] -> [...]
    if metric == "l2":
        return (a - b).square().sum(dim=-1)
    if metric == "cosine":
        return -torch.nn.functional.cosine_similarity(a, b, dim=-1, eps=1e-300)
    return -(a * b).sum(dim=-1)


def _candidates(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:  # [G, N + 1, D]
    """The vectors as a codebook: NaN where none may be chosen, and one such row more so that it is never empty."""
    rows = torch.where((indices >= 0)[..., None], x, torch.nan)
    return torch.cat([rows, x.new_full((1, *x.shape[1:]), torch.nan)]).transpose(0, 1)


def _take(candidates: torch.Tensor, rows: torch.Tensor, backend: str | None) -> torch.Tensor:
    """``[G, N + 1, D], [K, G] -> [G, K, D]``"""
    return gather_codes(candidates, rows, backend=backend).transpose(0, 1)
