"""The definition of ``top_codes``: codes sorted by (canonical key, index), the first M of them.

Every other backend must return these indices and these distance bits.
"""

from __future__ import annotations

import torch

from vqkernels._core.canonical import canonical_distance, canonical_keys, canonical_rows

_CODES_PER_CHUNK = 4096
_PAIRS_PER_CHUNK = 1 << 20


def unsupported_reasons(*args: object) -> list[str]:
    return []


def run(
    x: torch.Tensor,  # [N, G, D]
    codebook: torch.Tensor,  # [G, K, D]
    m: int,
    metric: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    indices = torch.zeros(*x.shape[:-1], m, dtype=torch.int64, device=x.device)
    distance = torch.full(indices.shape, torch.nan, dtype=torch.float32, device=x.device)
    chunk = _PAIRS_PER_CHUNK // (_CODES_PER_CHUNK + m)
    for group, codes in enumerate(codebook.double()):
        for start in range(0, x.shape[0], chunk):
            part = (slice(start, start + chunk), group)
            rows, usable = canonical_rows(x[part], metric)
            key, index = _lowest(rows, codes, m, metric)
            # a dot product beyond float64: nothing is nearest
            usable = (usable & (key[:, 0] > -torch.inf))[:, None]
            indices[part] = torch.where(usable, index, 0)
            distance[part] = torch.where(usable, canonical_distance(key, rows, metric), torch.nan)
    return indices, distance


def _lowest(rows: torch.Tensor, codes: torch.Tensor, m: int, metric: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The M lowest keys ``[n, M]`` and their codes, in order. ``[n, D], [K, D]``"""
    key = torch.empty(rows.shape[0], 0, dtype=torch.float64, device=rows.device)
    index = torch.empty(rows.shape[0], 0, dtype=torch.int64, device=rows.device)
    for start in range(0, codes.shape[0], _CODES_PER_CHUNK):
        more = canonical_keys(rows, codes[start : start + _CODES_PER_CHUNK], metric)
        following = torch.arange(start, start + more.shape[1], device=rows.device).expand_as(more)
        # stable, and what was kept stands before what follows: equal keys stay in the order of their indices
        key, order = torch.cat([key, more], dim=1).sort(dim=1, stable=True)
        index = torch.cat([index, following], dim=1).gather(1, order)[:, :m]
        key = key[:, :m]
    return key, index
