"""Powers of two and binary exponents of float64 numbers, by their bits."""

from __future__ import annotations

import torch

LOWEST, HIGHEST = -1022, 1024  # exponents of finite numbers


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:  # int64 in [-1022, 1023] -> float64
    return ((exponent + 1023) << 52).view(torch.float64)


def exponent_above(magnitude: torch.Tensor) -> torch.Tensor:  # float64, >= 0 -> int64
    """The least e, at least -1022, with ``magnitude < 2**e``; 1025 for what is not finite."""
    return (magnitude.view(torch.int64) >> 52) - 1022
