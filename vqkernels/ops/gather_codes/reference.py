"""Plain torch indexing."""

from __future__ import annotations

import torch


def unsupported_reasons(*args: object) -> list[str]:
    return []


def run(codebook: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:  # [G, K, D], [N, G] -> [N, G, D]
    num_codes = codebook.shape[1]
    if indices.device.type == "cpu" and indices.numel():  # elsewhere the check would be a synchronisation
        low, high = int(indices.min()), int(indices.max())
        if low < -1 or high >= num_codes:
            raise IndexError(f"indices: expected values in [-1, {num_codes}), got {low if low < -1 else high}")
    groups = torch.arange(codebook.shape[0], device=codebook.device)
    codes = codebook[groups, indices.clamp(min=0)]
    return torch.where((indices >= 0)[..., None], codes, 0)
