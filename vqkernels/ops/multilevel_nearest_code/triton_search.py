"""Kernels of the lookup in levels: a lower bound for every section of the codebook, then float64, best section first.

Vectors and codes come transposed, with the levels one below the other, so that neighbours in memory are neighbours
in a block. The scan adds up (x - c)^2 itself: a sum of positive terms has a relative error only, which the root
keeps, and no copy has to be shifted or scaled.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vqkernels._core.triton_canonical import first_lowest

SIZES = ["num_rows", "num_codes", "section_codes"]


@triton.jit
def _level_sums(
    x,  # pointers to the first entries of rows, [R, 1]
    codes,  # pointers to the first entries of codes, [R, C] or [1, C]
    weights,  # [L]
    num_rows,
    num_codes,
    DIMS: tl.constexpr,
    SQUARED: tl.constexpr,
    FINITE_TERMS: tl.constexpr,  # whether a term that overflows counts as 0
):
    """The sum over levels of weight times distance, ``[R, C]``, in the weights' dtype; +inf for an unusable code."""
    dtype: tl.constexpr = weights.dtype.element_ty
    total = tl.zeros([x.shape[0], codes.shape[1]], dtype)
    nothing = tl.zeros([codes.shape[0], codes.shape[1]], dtype)
    for level in tl.static_range(len(DIMS)):
        term = tl.zeros([x.shape[0], codes.shape[1]], dtype)
        for _ in range(DIMS[level]):
            code = tl.load(codes).to(dtype)
            difference = tl.load(x).to(dtype) - code
            term += difference * difference
            # NaN if the code is not finite
            nothing += code - code
            # stepping the pointers keeps the offset of a long stride out of 32 bits
            x += num_rows
            codes += num_codes
        if not SQUARED:
            term = tl.sqrt(term)
        weight = tl.load(weights + level)
        counted = (term < float("inf")) if FINITE_TERMS else (weight > 0)
        total += tl.where(counted, weight * term, 0.0)
    return tl.where((nothing == nothing) & (total == total), total, float("inf"))


@triton.jit(do_not_specialize=SIZES)
def scan_sections(
    x,  # [D, N]
    codes,  # [D, K]
    factors,  # [L]
    lows,  # [N, SECTIONS] out, dtype of the factors: no code of the section has a lower sum
    num_rows,
    num_codes,
    section_codes,  # codes in a section
    DIMS: tl.constexpr,
    SQUARED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    section, sections = tl.program_id(1), tl.num_programs(1)
    row = x + tl.minimum(n, num_rows - 1)[:, None]
    low = tl.full([BLOCK_N, BLOCK_K], float("inf"), factors.dtype.element_ty)
    first = section * section_codes
    for start in range(first, tl.minimum(first + section_codes, num_codes), BLOCK_K):
        # beyond the last code, that one again
        code = codes + tl.minimum(start + tl.arange(0, BLOCK_K), num_codes - 1)[None, :]
        # a term that overflows may have a small weight: a lower bound must leave it out
        low = tl.minimum(low, _level_sums(row, code, factors, num_rows, num_codes, DIMS, SQUARED, True))
    tl.store(lows + n.to(tl.int64) * sections + section, tl.min(low, axis=1), mask=n < num_rows)


@triton.jit(do_not_specialize=SIZES)
def decide_rows(
    x,  # [D, N]
    codes,  # [D, K]
    weights,  # [L] float64
    lows,  # [N, SECTIONS]
    unit,  # [2] float64: a key times the first, plus the second, bounds the lower bounds of codes as near as that
    indices,  # [N] int64 out
    distance,  # [N] float32 out
    num_rows,
    num_codes,
    section_codes,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    SQUARED: tl.constexpr,
    SECTIONS: tl.constexpr,
    WIDTH: tl.constexpr,  # SECTIONS rounded up to a power of two
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Evaluates the sections of a row in ascending order of their lower bounds, until none can hold a nearer code."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = n < num_rows
    n = tl.minimum(n, num_rows - 1)
    row = x + n[:, None]
    nothing = tl.zeros([ROWS, 1], tl.float64)
    entry = row
    for _ in range(D):
        value = tl.load(entry).to(tl.float64)
        nothing += value - value
        entry += num_rows
    finite = tl.min((nothing == nothing).to(tl.int32), axis=1) > 0

    section = tl.arange(0, WIDTH)[None, :]
    low = tl.load(lows + n.to(tl.int64)[:, None] * SECTIONS + section, mask=section < SECTIONS, other=float("inf"))
    scale, floor = tl.load(unit), tl.load(unit + 1)
    key = tl.full([ROWS], float("inf"), tl.float64)
    index = tl.zeros([ROWS], tl.int32)
    pending = (low < float("inf")) & (real & finite)[:, None]
    while tl.max(pending.to(tl.int32)) > 0:
        lowest, chosen = first_lowest(tl.where(pending, low, float("inf")), section, 1)
        active = (lowest < float("inf"))[:, None]
        first = tl.where(active, chosen[:, None], 0) * section_codes
        for start in range(0, section_codes, BLOCK_K):
            member = first + start + tl.arange(0, BLOCK_K)[None, :]
            code = codes + tl.minimum(member, num_codes - 1)
            keys = _level_sums(row, code, weights, num_rows, num_codes, DIMS, SQUARED, False)
            keys = tl.where(active & (member < num_codes), keys, float("inf"))
            block_key, block_index = first_lowest(keys, member, 1)
            nearer = (block_key < key) | ((block_key == key) & (block_index < index))
            key, index = tl.where(nearer, block_key, key), tl.where(nearer, block_index, index)
        limit = key * scale + floor
        pending = pending & (section != chosen[:, None]) & (low <= limit[:, None])

    won = key < float("inf")
    tl.store(indices + n, tl.where(won, index, 0).to(tl.int64), mask=real)
    tl.store(distance + n, tl.where(won, key, float("nan")).to(tl.float32), mask=real)
