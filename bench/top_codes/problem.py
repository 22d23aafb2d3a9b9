"""What the contestants get."""

from __future__ import annotations

from typing import NamedTuple

import torch


class TopProblem(NamedTuple):
    """Vectors, the codebook they are looked up in, and how many codes each wants."""

    x: torch.Tensor  # [N, D]
    codebook: torch.Tensor  # [K, D]
    m: int
