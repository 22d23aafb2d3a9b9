"""Kernels that sum vectors per code.

A program orders its rows by code and forms running sums down the sorted rows. A run of rows with one code
then adds up to (running sum at its last row) - (running sum before its first row), and only these two rows reach for
memory: a code that takes everything costs two atomic additions per program instead of one per row. Integers wrap
around and come back, so the differences are exact.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vqkernels._core.triton_canonical import widen
from vqkernels._core.triton_fixed_point import fixed_point_shift, is_finite, nearest_multiple, power_of_two

SIZES = [
    "num_rows",
    "num_codes",
    "num_entries",
    "stride_xn",
    "stride_xg",
    "stride_in",
    "stride_ig",
    "stride_wn",
    "stride_wg",
]


@triton.jit
def _shift(grid, code, mask, WEIGHT: tl.constexpr):
    """The shift of the totals of some codes, or of their weights."""
    vectors = tl.load(grid + code * 4 + 2, mask=mask, other=0)
    return fixed_point_shift(tl.load(grid + code * 4 + WEIGHT, mask=mask, other=0), vectors)


@triton.jit
def _sorted_runs(code, place, BLOCK_N: tl.constexpr):
    """Codes in ascending order, the places they come from, and whether each is the first, the last of its value."""
    # every pair is compared: for a block this small cheaper than a sorting network, whose every step is a shuffle
    this, other = code[:, None], code[None, :]
    below = tl.sum((other < this).to(tl.int32), axis=1)
    before = tl.sum(((other == this) & (place[None, :] < place[:, None])).to(tl.int32), axis=1)
    same = tl.sum((other == this).to(tl.int32), axis=1)
    rank = below + before
    # rank is a permutation; bits for first and last travel with the place
    packed = (place * 2 + (before == 0).to(tl.int32)) * 2 + (before == same - 1).to(tl.int32)
    packed = tl.sum(tl.where(rank[:, None] == place[None, :], packed[:, None], 0), axis=0)
    source = packed // 4
    return tl.gather(code, source, 0), source, (packed & 2) > 0, (packed & 1) > 0


@triton.jit
def _ends(running, addend, first, last):
    """What the first and the last row of a run add; one row that is both adds its addend."""
    return tl.where(last, running, 0) - tl.where(first, running - addend, 0)


@triton.jit(do_not_specialize=SIZES)
def add_rows(
    x,  # [N, G, D]
    indices,  # [N, G]
    weight,  # [N, G]; not read unless HAS_WEIGHT
    grid,  # [G, K, 4]; not read unless FIXED
    count,  # [G, K] int64 or float32, in place
    total,  # [G, K, D] int64 or float32 or float64, in place
    num_rows,
    num_codes,
    stride_xn,
    stride_xg,
    stride_xd,
    stride_in,
    stride_ig,
    stride_wn,
    stride_wg,
    D: tl.constexpr,
    FIXED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    SKIP_NONFINITE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    place = tl.arange(0, BLOCK_N)
    group = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + place
    index = tl.load(indices + n * stride_in + group * stride_ig, mask=n < num_rows, other=-1)
    # what is left out sorts last
    code = tl.where((index >= 0) & (index < num_codes), index, num_codes).to(tl.int32)
    if SKIP_NONFINITE:
        finite = code < num_codes
        if HAS_WEIGHT:
            finite = finite & is_finite(
                widen(tl.load(weight + n * stride_wn + group * stride_wg, mask=finite, other=0.0))
            )
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            at = n[:, None] * stride_xn + group * stride_xg + d[None, :] * stride_xd
            value = widen(tl.load(x + at, mask=finite[:, None] & (d < D)[None, :], other=0.0))
            if HAS_WEIGHT:
                value *= widen(tl.load(weight + n * stride_wn + group * stride_wg, mask=finite, other=0.0))[:, None]
            finite = finite & (tl.sum(tl.where(is_finite(value), 0, 1), axis=1) == 0)
        code = tl.where(finite, code, num_codes)

    code, n, first, last = _sorted_runs(code, place, BLOCK_N)
    n += tl.program_id(0).to(tl.int64) * BLOCK_N
    taken = code < num_codes
    writes = taken & (first | last)

    factor = tl.full([BLOCK_N], 1.0, tl.float64)
    if HAS_WEIGHT:
        factor = widen(tl.load(weight + n * stride_wn + group * stride_wg, mask=taken, other=0.0))
    mass = tl.where(taken & is_finite(factor), factor, 0.0)
    scale = factor
    if FIXED:
        scale = power_of_two(_shift(grid, group * num_codes + code, taken, 0))
        if HAS_WEIGHT:
            mass = nearest_multiple(mass, power_of_two(_shift(grid, group * num_codes + code, taken, 1)))
        else:
            mass = taken.to(tl.int64)
    mass = _ends(tl.cumsum(mass, axis=0), mass, first, last)
    tl.atomic_add(count + group * num_codes + code, mass.to(count.dtype.element_ty), mask=writes, sem="relaxed")

    row = x + n[:, None] * stride_xn + group * stride_xg
    out = total + (group * num_codes + code)[:, None] * D
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = (d < D)[None, :]
        value = (
            widen(tl.load(row + d[None, :] * stride_xd, mask=taken[:, None] & inside, other=0.0)) * factor[:, None]
        )
        if FIXED:
            addend = nearest_multiple(tl.where(is_finite(value), value, 0.0), scale[:, None])
        else:
            addend = tl.where(is_finite(value), value, 0.0)
        ends = _ends(tl.cumsum(addend, axis=0), addend, first[:, None], last[:, None])
        tl.atomic_add(out + d[None, :], ends.to(total.dtype.element_ty), mask=writes[:, None] & inside, sem="relaxed")


@triton.jit(do_not_specialize=SIZES)
def round_sums(
    grid,  # [G, K, 4]
    count,  # [G, K] int64
    total,  # [G, K, D] int64
    count_out,  # [G, K] float32 out
    total_out,  # [G, K, D] float32 or float64 out
    num_codes,
    num_entries,  # K * D
    D: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    group = tl.program_id(1).to(tl.int64)
    of_total, of_count = group * num_entries + at, group * num_codes + at
    shift = _shift(grid, group * num_codes + at // D, at < num_entries, 0)
    sums = tl.load(total + of_total, mask=at < num_entries, other=0).to(tl.float64) * power_of_two(-shift)
    tl.store(total_out + of_total, sums.to(total_out.dtype.element_ty), mask=at < num_entries)
    mass = tl.load(count + of_count, mask=at < num_codes, other=0).to(tl.float64)
    if HAS_WEIGHT:
        mass *= power_of_two(-_shift(grid, of_count, at < num_codes, 1))
    tl.store(count_out + of_count, mass.to(tl.float32), mask=at < num_codes)


@triton.jit(do_not_specialize=SIZES)
def mark_lost(
    x,  # [N, G, D]
    indices,  # [N, G]
    weight,  # [N, G]; not read unless HAS_WEIGHT
    total,  # [G, K, D] float32 or float64, in place
    num_rows,
    num_codes,
    stride_xn,
    stride_xg,
    stride_xd,
    stride_in,
    stride_ig,
    stride_wn,
    stride_wg,
    D: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """NaN for the sums that have an addend which is no number."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    group = tl.program_id(1).to(tl.int64)
    index = tl.load(indices + n * stride_in + group * stride_ig, mask=n < num_rows, other=-1)
    taken = (index >= 0) & (index < num_codes)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = taken[:, None] & (d < D)[None, :]
        value = tl.load(
            x + n[:, None] * stride_xn + group * stride_xg + d[None, :] * stride_xd, mask=inside, other=0.0
        )
        value = widen(value)
        if HAS_WEIGHT:
            value *= widen(tl.load(weight + n * stride_wn + group * stride_wg, mask=taken, other=0.0))[:, None]
        at = (group * num_codes + index)[:, None] * D + d[None, :]
        tl.store(total + at, tl.full([], float("nan"), tl.float32), mask=inside & (is_finite(value) == 0))
