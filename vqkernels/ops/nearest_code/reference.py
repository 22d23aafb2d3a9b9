"""The definition of ``nearest_code``: the lowest canonical key, lowest index on ties.

Every other backend must return these indices and these distance bits.
"""

from __future__ import annotations

import torch

from vqkernels._core.canonical import canonical_distance, canonical_keys, canonical_rows

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
        rows, usable = canonical_rows(x[:, group], metric)
        best = torch.full(rows.shape[:1], torch.inf, dtype=torch.float64, device=x.device)
        chosen = indices[:, group].clone()
        chunk = max(1, _PAIRS_PER_CHUNK // max(1, rows.shape[0]))
        for start in range(0, codes.shape[0], chunk):
            key = canonical_keys(rows, codes[start : start + chunk], metric)
            value, index = key.min(dim=1)  # first minimum of the chunk
            nearer = value < best  # strict: an equal later code does not replace an earlier one
            best = torch.where(nearer, value, best)
            chosen = torch.where(nearer, index + start, chosen)
        usable = usable & best.isfinite()
        indices[:, group] = torch.where(usable, chosen, 0)
        distance[:, group] = torch.where(usable, canonical_distance(best, rows, metric), torch.nan)
    return indices, distance
