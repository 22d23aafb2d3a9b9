"""The definition of ``draw_rows``: the least ``distance - noise``, the first vector on ties.

Every other backend must return these rows and these bits of the key.
"""

from __future__ import annotations

import torch

from vqkernels._core.canonical import (
    canonical_keys,
    canonical_log,
    canonical_norm,
    canonical_sqrt,
    code_chunks,
    without_last_bits,
)
from vqkernels._core.random import scattered_sum
from vqkernels.ops.draw_rows.op import Problem


def unsupported_reasons(*args: object) -> list[str]:
    return []


def run(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    rows, key = problem.nothing_drawn()
    n, k = len(problem.row_number), len(problem.code_number)
    if n == 0:
        return rows, key
    points = [level.double() for level in problem.x]
    for part in code_chunks(n, k):
        codes = [level[part].double() for level in problem.codes]
        distance = _distance(codes, points, problem.weights, problem.metric)
        keys = distance - gumbel_noise(problem.row_number, problem.code_number[part, None])
        keys = torch.where(problem.usable & distance.isfinite(), without_last_bits(keys), torch.inf)
        key[part], rows[part] = keys.min(dim=1)
    return torch.where(key.isfinite(), rows, 0), key


def gumbel_noise(row_number: torch.Tensor, code_number: torch.Tensor) -> torch.Tensor:  # [N], [K, 1] -> [K, N]
    """A number of Gumbel's distribution for every pair."""
    # 1 - v for v = (r + 1/2) / 2^32; the noise is large where v is small
    rest = (4294967295.5 - scattered_sum(row_number, code_number).double()) * 2.0**-32
    return -canonical_log(-canonical_log(rest))


def _distance(
    codes: list[torch.Tensor], x: list[torch.Tensor], weights: list[float], metric: str
) -> torch.Tensor:  # L of [k, D_l], L of [N, D_l] -> [k, N]; not finite where nothing is drawn
    if metric == "levels":
        total = torch.zeros(codes[0].shape[0], x[0].shape[0], dtype=torch.float64, device=x[0].device)
        for code, row, weight in zip(codes, x, weights, strict=True):
            if weight > 0:  # the number 0 times an overflow would not be a number
                total += weight * canonical_sqrt(canonical_keys(code, row, "l2"))
        return total
    keys = canonical_keys(codes[0], x[0], metric)
    if metric == "cosine":
        norm = canonical_norm(codes[0])[:, None]
        keys = torch.where(norm.isfinite(), torch.where(norm > 0, keys / norm, 0.0), torch.inf)
    return keys
