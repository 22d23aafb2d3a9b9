"""The definition of ``nearest_code``: the lowest canonical key, lowest index on ties.

Every other backend must return these indices and these distance bits.
"""

from __future__ import annotations

import torch

from vqkernels._core.canonical import (
    canonical_distance,
    canonical_keys,
    canonical_rows,
    code_chunks,
    first_minimum,
)


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
        parts = code_chunks(rows.shape[0], codes.shape[0])
        best, chosen = first_minimum(canonical_keys(rows, codes[part], metric) for part in parts)
        usable = usable & best.isfinite()
        indices[:, group] = torch.where(usable, chosen, 0)
        distance[:, group] = torch.where(usable, canonical_distance(best, rows, metric), torch.nan)
    return indices, distance
