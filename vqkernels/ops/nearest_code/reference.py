"""The definition of ``nearest_code``: float64, one dimension at a time, lowest index on ties.

Every other backend must return these indices and these distance bits. The sums run over d = 0 .. D-1 in order,
each product rounded before it is added (no fused multiply-add), so that "the same float64 number" is a meaningful
demand on any hardware.
"""

from __future__ import annotations

import numpy as np
import torch

_PAIRS_PER_CHUNK = 1 << 20


def unsupported_reasons(*args: object) -> list[str]:
    return []


def run(
    x: torch.Tensor,  # [N, G, D]
    codebook: torch.Tensor,  # [G, K, D]
    metric: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    indices = torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)
    distance = torch.full(x.shape[:-1], torch.nan, dtype=torch.float32, device=x.device)
    for group, codes in enumerate(codebook.double()):
        rows = x[:, group].double()
        usable = rows.isfinite().all(dim=1)
        if metric == "cosine":
            norm = _norm(rows)
            usable = usable & norm.isfinite()
            rows = torch.where(norm[:, None] > 0, rows, 0.0)  # also where only the norm underflows
        best = torch.full(rows.shape[:1], torch.inf, dtype=torch.float64, device=x.device)
        chosen = indices[:, group].clone()
        chunk = max(1, _PAIRS_PER_CHUNK // max(1, rows.shape[0]))
        for start in range(0, codes.shape[0], chunk):
            key = keys(rows, codes[start : start + chunk], metric)
            value, index = key.min(dim=1)  # first minimum of the chunk
            nearer = value < best  # strict: an equal later code does not replace an earlier one
            best = torch.where(nearer, value, best)
            chosen = torch.where(nearer, index + start, chosen)
        usable = usable & best.isfinite()
        indices[:, group] = torch.where(usable, chosen, 0)
        distance[:, group] = torch.where(usable, _distance(best, rows, metric), torch.nan).float()
    return indices, distance


def keys(rows: torch.Tensor, codes: torch.Tensor, metric: str) -> torch.Tensor:
    """The number that is minimised: squared distance, -cos times |x|, or -dot. ``[n, D], [k, D] -> [n, k]``."""
    total = torch.zeros(rows.shape[0], codes.shape[0], dtype=torch.float64, device=rows.device)
    for d in range(rows.shape[1]):
        a, b = rows[:, d, None], codes[None, :, d]
        total += (a - b).square_() if metric == "l2" else -(a * b)
    bad_code = ~codes.isfinite().all(dim=1)
    if metric == "cosine":
        norm = _norm(codes)
        total = torch.where(norm > 0, total / norm, 0.0)
        bad_code = bad_code | ~norm.isfinite()
    return torch.where(bad_code | total.isnan(), torch.inf, total)


def _norm(rows: torch.Tensor) -> torch.Tensor:
    total = torch.zeros_like(rows[:, 0])
    for d in range(rows.shape[1]):
        total += rows[:, d].square()
    # numpy's square root is correctly rounded; torch's on the CPU is not always
    return torch.from_numpy(np.sqrt(total.cpu().numpy())).to(total.device)


def _distance(key: torch.Tensor, rows: torch.Tensor, metric: str) -> torch.Tensor:
    if metric != "cosine":
        return key
    norm = _norm(rows)
    return torch.where(norm > 0, 1.0 + key / norm, 1.0).clamp(min=0.0)
