"""Operator ``vqkernels::draw_rows``: for every code a vector, by a softmax over all vectors, in chunks."""

from __future__ import annotations

import torch

from vqkernels._core.library import define_op
from vqkernels._core.random import random_integers, random_uniform

_PAIRS = 1 << 17  # scores held at a time: they stay in the cache


def _draw_rows(
    codes: list[torch.Tensor],  # L of [K, D_l]
    x: list[torch.Tensor],  # L of [N, D_l]
    weights: list[float],  # [L]
    metric: str,
    usable: torch.Tensor,  # [N] bool
    seed: torch.Tensor,  # [] int64
) -> tuple[torch.Tensor, torch.Tensor]:  # [K] int64, [K] float32
    """The largest of ``gumbel - distance``: row n is it with a probability proportional to exp(-distance)."""
    k, n = codes[0].shape[0], x[0].shape[0]
    rows = torch.zeros(k, dtype=torch.int64, device=usable.device)
    key = torch.full((k,), torch.inf, device=usable.device)
    if n == 0:
        return rows, key
    points = [torch.where(usable[:, None], level.double(), 0) for level in x]
    seed_of = random_integers(seed, (k,), usable.device)
    for start in range(0, k, max(1, _PAIRS // n)):
        part = slice(start, start + max(1, _PAIRS // n))
        uniform = random_uniform(seed_of[part, None], (n,), usable.device)
        gumbel = -(-uniform.log()).log()
        score = gumbel - _distance([level[part].double() for level in codes], points, weights, metric)
        score = torch.where(usable & score.isfinite(), score, -torch.inf)
        best = score.max(dim=1)
        rows[part], key[part] = best.indices, -best.values.float()
    return rows, key


def _distance(
    codes: list[torch.Tensor], x: list[torch.Tensor], weights: list[float], metric: str
) -> torch.Tensor:  # L of [k, D_l], L of [N, D_l] -> [k, N]
    if metric == "dot":
        return -codes[0] @ x[0].T
    if metric == "cosine":
        codes, x = ([level / level.norm(dim=1, keepdim=True).clamp(min=1e-300) for level in t] for t in (codes, x))
        return 1 - codes[0] @ x[0].T
    total = codes[0].new_zeros(())
    for code, row, weight in zip(codes, x, weights, strict=True):
        square = torch.addmm(row.square().sum(1), code, row.T, alpha=-2) + code.square().sum(1, keepdim=True)
        total = total + weight * (square if metric == "l2" else square.clamp(min=0).sqrt())
    return total


def _draw_rows_fake(
    codes: list[torch.Tensor],
    x: list[torch.Tensor],
    weights: list[float],
    metric: str,
    usable: torch.Tensor,
    seed: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    k = codes[0].shape[0]
    return usable.new_empty(k, dtype=torch.int64), usable.new_empty(k, dtype=torch.float32)


draw_rows_op = define_op(
    "draw_rows(Tensor[] codes, Tensor[] x, float[] weights, str metric, Tensor usable, Tensor seed) "
    "-> (Tensor, Tensor)",
    _draw_rows,
    _draw_rows_fake,
)
