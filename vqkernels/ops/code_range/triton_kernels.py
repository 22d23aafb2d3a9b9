"""Kernel that measures vectors: each program finds the largest of each code in a block of rows, atomics join them."""

from __future__ import annotations

import triton
import triton.language as tl

from vqkernels._core.triton_canonical import widen
from vqkernels._core.triton_fixed_point import exponent_above, is_finite

SIZES = ["num_rows", "num_codes", "stride_xn", "stride_xg", "stride_in", "stride_ig", "stride_wn", "stride_wg"]


@triton.jit(do_not_specialize=SIZES)
def measure_rows(
    x,  # [N, G, D]
    indices,  # [N, G]
    weight,  # [N, G]; not read unless HAS_WEIGHT
    exponents,  # [G, K, 2] int64, in place; starts at -1022
    numbers,  # [G, 2] int64, in place; starts at 0
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
    SKIP_NONFINITE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    place = tl.arange(0, BLOCK_N)
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + place
    group = tl.program_id(1).to(tl.int64)
    real = n < num_rows
    index = tl.load(indices + n * stride_in + group * stride_ig, mask=real, other=-1)
    named = index >= 0
    factor = tl.full([BLOCK_N], 1.0, tl.float64)
    if HAS_WEIGHT:
        factor = widen(tl.load(weight + n * stride_wn + group * stride_wg, mask=named, other=0.0))

    row = x + n[:, None] * stride_xn + group * stride_xg
    largest = tl.zeros([BLOCK_N], tl.float64)
    finite = is_finite(factor)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        value = tl.load(row + d[None, :] * stride_xd, mask=named[:, None] & (d < D)[None, :], other=0.0)
        magnitude = tl.abs(widen(value) * factor[:, None])
        usable = is_finite(magnitude)
        largest = tl.maximum(largest, tl.max(tl.where(usable, magnitude, 0.0), axis=1))
        finite = finite & (tl.sum(tl.where(usable, 0, 1), axis=1) == 0)
    taken = named
    if SKIP_NONFINITE:
        taken = named & finite
    # the first row of a code has all rows of the block that share it speak through one atomic; every pair is compared
    code = tl.where(taken, index, num_codes).to(tl.int32)
    same = code[:, None] == code[None, :]
    first = taken & (tl.sum((same & (place[None, :] < place[:, None])).to(tl.int32), axis=1) == 0)
    of_entry = exponent_above(largest).to(tl.int32)
    of_weight = exponent_above(tl.where(is_finite(factor), tl.abs(factor), 0.0)).to(tl.int32)
    here = exponents + (group * num_codes + code) * 2
    of_code = tl.max(tl.where(same, of_entry[None, :], -1022), axis=1)
    tl.atomic_max(here, of_code.to(tl.int64), mask=first, sem="relaxed")
    of_code = tl.max(tl.where(same, of_weight[None, :], -1022), axis=1)
    tl.atomic_max(here + 1, of_code.to(tl.int64), mask=first, sem="relaxed")
    tl.atomic_add(numbers + group * 2, tl.sum(taken.to(tl.int64), axis=0), sem="relaxed")
    tl.atomic_add(numbers + group * 2 + 1, tl.sum((named & (finite == 0)).to(tl.int64), axis=0), sem="relaxed")
