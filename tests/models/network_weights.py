"""Weights that are a formula, so that what a network makes of them can be written down."""

from __future__ import annotations

import torch


def waves(shape: torch.Size | tuple[int, ...], number: int) -> torch.Tensor:  # float64 in [-1, 1]
    """Sines of the place in memory, at a frequency of ``number``'s own."""
    places = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(places * 1.7 * (1 + number % 97 / 97) + number).reshape(shape)
