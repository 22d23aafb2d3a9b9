"""The float64 numbers that define which code is nearer, one dimension at a time.

Sums run over d = 0 .. D-1 in order, each product rounded before it is added (no fused multiply-add), so that "the
same float64 number" is a meaningful demand on any hardware.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch

_PAIRS_PER_CHUNK = 1 << 20
_LOG_TERMS = 17


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
    return canonical_sqrt(total)


def canonical_sqrt(value: torch.Tensor) -> torch.Tensor:
    """The correctly rounded square root of a float64 tensor."""
    # numpy's is; torch's on the CPU is not always
    return torch.from_numpy(np.sqrt(value.cpu().numpy())).to(value.device)


def code_chunks(n: int, num_codes: int) -> Iterator[slice]:
    """All codes in turn, so many at a time that n rows make about 2^20 pairs."""
    size = max(1, _PAIRS_PER_CHUNK // max(1, n))
    return (slice(start, start + size) for start in range(0, num_codes, size))


def first_minimum(chunks: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest key of every row and the first code that has it. ``[n, k], [n, k'], ... -> [n], [n]``"""
    best, chosen, start = torch.empty(0), torch.empty(0), 0
    for keys in chunks:
        value, index = keys.min(dim=1)  # first minimum of the chunk
        if start:
            nearer = value < best  # strict: an equal later code does not replace an earlier one
            value, index = torch.where(nearer, value, best), torch.where(nearer, index + start, chosen)
        best, chosen, start = value, index, start + keys.shape[1]
    return best, chosen


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


def canonical_log(value: torch.Tensor) -> torch.Tensor:
    """The natural logarithm of positive normal float64 numbers, to 2^-50: the same bits everywhere.

    With value = 2^e m, m in [1/2, 1), and s = (m - 1) / (m + 1), it is e ln 2 + 2 (s + s^3 / 3 + s^5 / 5 + ...).
    """
    m, exponent = torch.frexp(value)
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    total = torch.full_like(s, 1.0 / (2 * _LOG_TERMS - 1))
    for i in range(_LOG_TERMS - 2, -1, -1):
        total = total * square + 1.0 / (2 * i + 1)
    return exponent.double() * math.log(2.0) + 2.0 * s * total


def without_last_bits(key: torch.Tensor) -> torch.Tensor:  # [...] float64
    """Drop 16 bits, which leaves room for the rank of a process; order stays, or becomes equality."""
    if key.dtype != torch.float64:
        return key  # of a device without float64, where there is one process
    return (key.view(torch.int64) & ~0xFFFF).view(torch.float64)
