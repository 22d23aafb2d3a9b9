"""The definition of ``multilevel_nearest_code``: the lowest weighted sum of distances, lowest index on ties.

Every other backend must return these indices and these distance bits. A level's sum of squares is that of
``nearest_code``; its square root is rounded correctly, multiplied by the weight, and the levels are added in order.
"""

from __future__ import annotations

import torch

from vqkernels._core.canonical import canonical_keys, canonical_sqrt, code_chunks, first_minimum


def unsupported_reasons(*args: object) -> list[str]:
    return []


def run(
    xs: list[torch.Tensor],  # L of [N, D_l]
    codebooks: list[torch.Tensor],  # L of [K, D_l]
    weights: list[float],
    squared: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, codes = [x.double() for x in xs], [codebook.double() for codebook in codebooks]
    parts = code_chunks(rows[0].shape[0], codes[0].shape[0])
    best, chosen = first_minimum(_keys(rows, [c[part] for c in codes], weights, squared) for part in parts)
    usable = _finite(rows) & best.isfinite()
    return torch.where(usable, chosen, 0), torch.where(usable, best, torch.nan).float()


def _keys(rows: list[torch.Tensor], codes: list[torch.Tensor], weights: list[float], squared: bool) -> torch.Tensor:
    """``L of [n, D_l], L of [k, D_l] -> [n, k]``"""
    total = torch.zeros(rows[0].shape[0], codes[0].shape[0], dtype=torch.float64, device=rows[0].device)
    for x, c, weight in zip(rows, codes, weights, strict=True):
        if weight > 0:  # the number 0 times an overflow would not be a number
            square = canonical_keys(x, c, "l2")
            total += weight * (square if squared else canonical_sqrt(square))
    return torch.where(_finite(codes), total, torch.inf)


def _finite(levels: list[torch.Tensor]) -> torch.Tensor:
    """Which rows are finite in every level. ``L of [n, D_l] -> [n]``"""
    return torch.stack([level.isfinite().all(dim=1) for level in levels]).all(dim=0)
