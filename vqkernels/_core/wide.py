"""Lookups of float64 vectors whose squares float64 cannot hold.

A cosine does not change when a vector is multiplied by a power of two, so such vectors are, before the lookup. A
squared distance has no such way out: where it is beyond float64, it is infinite.
"""

from __future__ import annotations

import torch

from vqkernels._core.powers import exponent_above, power_of_two

_SAFE = 400  # binary exponents up to here leave products of vectors, and of their lengths, far from the ends


def compared(x: torch.Tensor, metric: str) -> torch.Tensor:  # [..., D]
    """Vectors or codes with the same cosines as these, and of a length that has a square."""
    if metric != "cosine" or x.dtype != torch.float64:
        return x
    largest = x.abs().amax(dim=-1, keepdim=True)
    exponent = exponent_above(largest)
    out_of_range = (exponent.abs() > _SAFE) & (largest > 0) & largest.isfinite()
    shift = torch.where(out_of_range, -exponent, 0)
    # in two halves: the whole may be beyond float64
    half = shift >> 1
    return x * power_of_two(half) * power_of_two(shift - half)


def told(
    distance: torch.Tensor,  # [N, G, M] float32
    x: torch.Tensor,  # [N, G, D]
    codebook: torch.Tensor,  # [G, K, D]
    indices: torch.Tensor,  # [N, G, M]
    metric: str,
) -> torch.Tensor:  # [N, G, M]
    """The distances, infinite where vector and code are finite and their squared distance is not."""
    if metric != "l2" or torch.float64 not in (x.dtype, codebook.dtype):
        return distance
    group = torch.arange(len(codebook), device=x.device)[:, None]
    finite = x.isfinite().all(dim=-1)[..., None] & codebook.isfinite().all(dim=-1)[group, indices]
    return torch.where(finite & distance.isnan(), torch.inf, distance)
