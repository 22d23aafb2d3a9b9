"""Plain torch indexing."""

from __future__ import annotations

import torch

from vqkernels._core.checks import check_index_values


def unsupported_reasons(*args: object) -> list[str]:
    return []


def run(codebook: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:  # [G, K, D], [N, G] -> [N, G, D]
    num_codes = codebook.shape[1]
    check_index_values("indices", indices, num_codes)
    groups = torch.arange(codebook.shape[0], device=codebook.device)
    codes = codebook[groups, indices.clamp(min=0)]
    return torch.where((indices >= 0)[..., None], codes, 0)
