"""The draw in one kernel: the canonical key of every pair, in float64.

A program owns a few codes and walks past all vectors; nothing but the best pair of each is kept. Vectors and codes
come transposed, level below level.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vqkernels._core.triton_canonical import first_lowest, widen

LOG_TERMS = tl.constexpr(17)


@triton.jit
def _canonical_log(value):
    """See vqkernels/_core/canonical.py."""
    bits = value.to(tl.int64, bitcast=True)
    m = ((bits & 0xFFFFFFFFFFFFF) | (1022 << 52)).to(tl.float64, bitcast=True)
    exponent = ((bits >> 52) - 1022).to(tl.float64)
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    total = tl.full(s.shape, 1.0, tl.float64) / (2 * LOG_TERMS - 1)
    for back in tl.static_range(LOG_TERMS - 1):
        total = total * square + tl.full([], 1.0, tl.float64) / (2 * (LOG_TERMS - 2 - back) + 1)
    return exponent * tl.full([], 0.6931471805599453, tl.float64) + 2.0 * s * total


@triton.jit
def _noise(row_number, code_number):
    value = (row_number + code_number) & 0xFFFFFFFF
    value = ((value ^ (value >> 16)) * 0x21F0AAAD) & 0xFFFFFFFF
    value = ((value ^ (value >> 15)) * 0x735A2D97) & 0xFFFFFFFF
    value = value ^ (value >> 15)
    rest = (4294967295.5 - value.to(tl.float64)) * 2.3283064365386963e-10  # 2^-32
    return -_canonical_log(-_canonical_log(rest))


@triton.jit
def _level_keys(point, code, num_rows, num_codes, SIZE: tl.constexpr, METRIC: tl.constexpr):
    """Sum of squared differences, or minus the product, ``[C, R]``; and the squared lengths ``[C, 1], [1, R]``."""
    total = tl.zeros([code.shape[0], point.shape[1]], tl.float64)
    code_square = tl.zeros([code.shape[0], 1], tl.float64)
    row_square = tl.zeros([1, point.shape[1]], tl.float64)
    for _ in range(SIZE):
        a, b = widen(tl.load(code)), widen(tl.load(point))
        if METRIC == "dot" or METRIC == "cosine":
            total -= a * b
        else:
            total += (a - b) * (a - b)
        code_square += a * a
        row_square += b * b
        # stepping the pointers keeps the offset of a long stride out of 32 bits
        point += num_rows
        code += num_codes
    return total, code_square, row_square


@triton.jit
def _distances(
    point, code, weights, num_rows, num_codes, DIMS: tl.constexpr, METRIC: tl.constexpr
):  # pointers [1, R], [C, 1] -> [C, R]
    total = tl.zeros([code.shape[0], point.shape[1]], tl.float64)
    for level in tl.static_range(len(DIMS)):
        key, code_square, row_square = _level_keys(point, code, num_rows, num_codes, DIMS[level], METRIC)
        if METRIC == "levels":
            weight = tl.load(weights + level)
            total += tl.where(weight > 0, weight * tl.sqrt(key), 0.0)
        elif METRIC == "cosine":
            norms = tl.sqrt(row_square) + tl.sqrt(code_square)
            whole = (code_square > 0) & (row_square > 0)
            total = tl.where(whole, key / tl.sqrt(row_square) / tl.sqrt(code_square), 0.0)
            total = tl.where(norms < float("inf"), total, float("inf"))
        else:
            total = key
        point += DIMS[level] * num_rows
        code += DIMS[level] * num_codes
    return total


@triton.jit(do_not_specialize=["num_rows", "num_codes"])
def draw(
    x,  # [D, N]
    codes,  # [D, K]
    weights,  # [L] float64
    usable,  # [N] bool
    row_numbers,  # [N] int64
    code_numbers,  # [K] int64
    rows,  # [K] int64 out
    keys,  # [K] float64 out
    num_rows,
    num_codes,
    DIMS: tl.constexpr,
    METRIC: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    real = tl.minimum(k, num_codes - 1)
    code_number = tl.load(code_numbers + real)[:, None]
    best = tl.full([BLOCK_K], float("inf"), tl.float64)
    chosen = tl.zeros([BLOCK_K], tl.int32)
    for start in range(0, num_rows, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        at = tl.minimum(n, num_rows - 1)
        distance = _distances((x + at)[None, :], (codes + real)[:, None], weights, num_rows, num_codes, DIMS, METRIC)
        key = distance - _noise(tl.load(row_numbers + at)[None, :], code_number)
        key = (key.to(tl.int64, bitcast=True) & -65536).to(tl.float64, bitcast=True)  # without the last 16 bits
        taken = (n < num_rows) & (tl.load(usable + at) != 0)
        key = tl.where(taken[None, :] & (tl.abs(distance) < float("inf")), key, float("inf"))
        lowest, index = first_lowest(key, n[None, :], 1)
        nearer = lowest < best  # strict: an equal later vector does not replace an earlier one
        best, chosen = tl.where(nearer, lowest, best), tl.where(nearer, index, chosen)
    tl.store(rows + k, chosen.to(tl.int64), mask=k < num_codes)
    tl.store(keys + k, best, mask=k < num_codes)
