"""Sums that are the same bits in whatever order, chunks and processes their addends come: sums of integers."""

from __future__ import annotations

import math

import torch

from vqkernels.ops.code_stats import code_stats

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
        high = (mantissa * 2.0**_HIGH).trunc()
        low = (mantissa * 2.0**_HIGH - high) * 2.0**_LOW
        place = torch.where(finite, exponent.long() - _LOWEST, _PLACES - 1)
        for digits, row in ((torch.where(finite, high, 1.0), 0), (low, 1)):
            bins[row] += torch.bincount(place, weights=digits, minlength=_PLACES).long()
    return bins


def rounded_sum(bins: torch.Tensor) -> float:  # [2, places]
    """The sum that the integers stand for, rounded once."""
    high, low = bins.tolist()
    if high[-1]:
        return math.inf
    total = sum(((h << _LOW) + part) << place for place, (h, part) in enumerate(zip(high, low, strict=True)))
    return float(total / (1 << (_HIGH + _LOW - _LOWEST)))


def exact_sum(values: torch.Tensor) -> float:  # [...] float64
    return rounded_sum(exact_bins(values))


def weighted(values: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:  # [n], [n] -> [n] float64
    return values.double() if weight is None else values.double() * weight


def row_range(rows: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:  # [n, D], [n] -> [3] int64
    """What the grid of sums is chosen by: exponents above the largest ``|weight * row|`` and weight, and n.

    Over several chunks or processes the first two combine by their maximum, the last by its sum.
    """
    mass = torch.ones_like(rows[:, 0], dtype=torch.float64) if weight is None else weight.double()
    largest = (rows.double().abs().amax(dim=1) * mass).amax() if len(rows) else mass.new_zeros(())
    exponents = torch.frexp(torch.stack([largest, mass.amax() if len(rows) else largest])).exponent.long()
    return torch.cat([exponents, torch.tensor([len(rows)], device=rows.device)])


def grid_sums(
    rows: torch.Tensor,  # [n, D]
    indices: torch.Tensor,  # [n]
    num_codes: int,
    weight: torch.Tensor | None,  # [n]
    within: torch.Tensor,  # [3] of all rows whose sums will be added up
) -> tuple[torch.Tensor, torch.Tensor]:  # [K], [K, D] int64
    """Weights and weighted rows per code, as multiples of a power of two that is the same for all rows."""
    shift, weight_shift = _shifts(within)
    mass = torch.ones_like(rows[:, :1], dtype=torch.float64) if weight is None else weight.double()[:, None]
    addends = torch.cat([(rows.double() * mass * 2.0**shift).round(), (mass * 2.0**weight_shift).round()], dim=1)
    # float64 sums of these integers are exact
    total = code_stats(addends, indices, num_codes).total.long()
    return total[:, -1], total[:, :-1]


def grid_numbers(
    count: torch.Tensor,  # [K] int64
    total: torch.Tensor,  # [K, D] int64
    within: torch.Tensor,  # [3]
) -> tuple[torch.Tensor, torch.Tensor]:  # [K], [K, D] float64
    """What the multiples stand for."""
    shift, weight_shift = _shifts(within)
    return count.double() * 2.0**-weight_shift, total.double() * 2.0**-shift


def _shifts(within: torch.Tensor) -> tuple[int, int]:
    exponent, weight_exponent, rows = within.tolist()
    bits = 52 - math.ceil(math.log2(max(1, rows)))
    return min(bits - exponent, 1000), min(bits - weight_exponent, 1000)
