"""What the contestants get."""

from __future__ import annotations

from typing import NamedTuple

import torch


class MultilevelProblem(NamedTuple):
    """Vectors and codes of L levels that share one index."""

    xs: tuple[torch.Tensor, ...]  # L of [N, D_l]
    codebooks: tuple[torch.Tensor, ...]  # L of [K, D_l]
    weights: tuple[float, ...]  # L
