"""Sums of numbers that are the same bits in whatever order, chunks and processes they come: sums of integers."""

from __future__ import annotations

import math

import torch

# numbers are taken apart into two integers at one of these binary places; the last counts what is infinite
_LOWEST = -1073
_PLACES = 1024 - _LOWEST + 2
_HIGH, _LOW = 27, 26  # bits
_PART = 1 << 26  # so many integers of 27 bits add up exactly in float64


def exact_bins(values: torch.Tensor) -> torch.Tensor:  # [...] float64 -> [2, places] int64
    """Integers that stand for the sum of numbers without any rounding; those of several tensors are added."""
    bins = torch.zeros(2, _PLACES, dtype=torch.int64, device=values.device)
    for part in values.reshape(-1).split(_PART):
        finite = part.isfinite()
        mantissa, exponent = torch.frexp(torch.where(finite, part, 0.0))
        scaled = mantissa * 2.0**_HIGH
        high = scaled.trunc()
        place = exponent.long() - _LOWEST
        for row, digits in enumerate((high, (scaled - high) * 2.0**_LOW)):
            bins[row] += torch.bincount(place, weights=digits, minlength=_PLACES).long()
        bins[0, -1] += (~finite).sum()
    return bins


def rounded_sum(bins: torch.Tensor) -> float:  # [2, places]
    """The sum that the integers stand for, rounded once."""
    if bins[0, -1]:
        return math.inf
    place = bins.any(dim=0).nonzero()[:, 0]
    taken = zip(place.tolist(), *bins[:, place].tolist(), strict=True)
    total = sum(((high << _LOW) + low) << at for at, high, low in taken)
    return float(total / (1 << (_HIGH + _LOW - _LOWEST)))


def exact_sum(values: torch.Tensor) -> float:  # [...] float64
    return rounded_sum(exact_bins(values))


def weighted(values: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:  # [n], [n] -> [n] float64
    return values.double() if weight is None else values.double() * weight
