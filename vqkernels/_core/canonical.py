"""The float64 numbers that define which code is nearer, one dimension at a time.

Sums run over d = 0 .. D-1 in order, each product rounded before it is added (no fused multiply-add), so that "the
same float64 number" is a meaningful demand on any hardware.
"""

from __future__ import annotations

import numpy as np
import torch


def canonical_rows(x: torch.Tensor, metric: str) -> tuple[torch.Tensor, torch.Tensor]:
    """``x`` ``[n, D]`` in float64 and which of its rows have a nearest code at all ``[n]``."""
    rows = x.double()
    usable = rows.isfinite().all(dim=1)
    if metric == "cosine":
        norm = canonical_norm(rows)
        usable = usable & norm.isfinite()
        rows = torch.where(norm[:, None] > 0, rows, 0.0)  # also where only the norm underflows
    return rows, usable


def canonical_keys(rows: torch.Tensor, codes: torch.Tensor, metric: str) -> torch.Tensor:
    """The number that is minimised: squared distance, -cos times |x|, or -dot. ``[n, D], [k, D] -> [n, k]``.

    Infinite for a code that is not finite, or so far that float64 cannot tell.
    """
    total = torch.zeros(rows.shape[0], codes.shape[0], dtype=torch.float64, device=rows.device)
    for d in range(rows.shape[1]):
        a, b = rows[:, d, None], codes[None, :, d]
        total += (a - b).square_() if metric == "l2" else -(a * b)
    bad_code = ~codes.isfinite().all(dim=1)
    if metric == "cosine":
        norm = canonical_norm(codes)
        total = torch.where(norm > 0, total / norm, 0.0)
        bad_code = bad_code | ~norm.isfinite()
    return torch.where(bad_code | total.isnan(), torch.inf, total)


def canonical_norm(rows: torch.Tensor) -> torch.Tensor:
    """``[n, D] -> [n]``"""
    total = torch.zeros_like(rows[:, 0])
    for d in range(rows.shape[1]):
        total += rows[:, d].square()
    # numpy's square root is correctly rounded; torch's on the CPU is not always
    return torch.from_numpy(np.sqrt(total.cpu().numpy())).to(total.device)


def canonical_distance(
    key: torch.Tensor,  # [n, ...]
    rows: torch.Tensor,  # [n, D]
    metric: str,
) -> torch.Tensor:
    """What is reported for a key, float32; NaN if it is not finite."""
    distance = key
    if metric == "cosine":
        norm = canonical_norm(rows).reshape(-1, *[1] * (key.dim() - 1))
        distance = torch.where(norm > 0, 1.0 + key / norm, 1.0).clamp(min=0.0)
    return torch.where(key.isfinite(), distance, torch.nan).float()
