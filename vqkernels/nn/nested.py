"""Groups of which only the first are kept (MGVQ)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vqkernels._core.random import random_uniform


def kept_groups(
    shape: torch.Size, probs: Sequence[float], scope: str, groups: int, seed: torch.Tensor
) -> torch.Tensor:  # [N, G] bool
    """The first groups of every entry of the batch, or of all of them alike, as many as a draw says."""
    ends = torch.tensor(probs, device=seed.device).cumsum(0)[:-1]
    # the sign keeps these draws apart from those of codes
    drawn = tuple(shape[:1]) if scope == "entry" else (1,) * len(shape[:1])
    uniform = random_uniform(-seed, drawn, seed.device)
    kept = torch.cat([torch.ones_like(uniform[..., None], dtype=torch.bool), uniform[..., None] >= ends], dim=-1)
    entries = kept.reshape(*drawn, *(1 for _ in shape[1:]), groups)
    return entries.expand(*shape, groups).reshape(-1, groups)
