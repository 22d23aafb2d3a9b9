"""The float64 number that defines the nearest code, for Triton kernels: the device side of ``reference.py``.

Sums run over d = 0 .. D-1 in order. A kernel that calls these functions must be launched with
``enable_fp_fusion=False``: a product is rounded before it is added.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def widen(value):
    """Any floating point dtype to float64; exact."""
    if value.dtype == tl.float64:
        return value
    return value.to(tl.float32).to(tl.float64)


@triton.jit(do_not_specialize=["num_vectors", "stride_g", "stride_v"])
def canonical_norms(
    vectors,  # [G, V, D]
    norm,  # [G, V] float64 out: |v|; NaN if an entry is not finite
    num_vectors,
    stride_g,
    stride_v,
    stride_d,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    v = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    group = tl.program_id(1).to(tl.int64)
    vector = vectors + group * stride_g + tl.minimum(v, num_vectors - 1).to(tl.int64) * stride_v
    square = tl.zeros([BLOCK], tl.float64)
    nothing = tl.zeros([BLOCK], tl.float64)
    for _ in range(D):
        value = widen(tl.load(vector))
        square += value * value
        nothing += value - value
        vector += stride_d
    tl.store(norm + group * num_vectors + v, tl.sqrt(square) + nothing, mask=v < num_vectors)


@triton.jit
def canonical_keys(
    x,  # pointers to the first entry of rows, [R, 1]
    x_step,
    codes,  # pointers to the first entry of codes, [R, C] or [1, C]
    code_step,
    code_norm,  # as `codes`; NaN marks a code with a non-finite entry
    row_norm,  # [R, 1]
    D: tl.constexpr,
    METRIC: tl.constexpr,
):
    """The number that is minimised, ``[R, C]``; +inf for a code that must not be chosen."""
    total = tl.zeros([x.shape[0], codes.shape[1]], tl.float64)
    for _ in range(D):
        a, b = widen(tl.load(x)), widen(tl.load(codes))
        if METRIC == "l2":
            difference = a - b
            total += difference * difference
        else:
            total -= a * b
        # stepping the pointers keeps the offset of a long stride out of 32 bits
        x += x_step
        codes += code_step
    usable = code_norm == code_norm
    if METRIC == "cosine":
        total = tl.where((row_norm > 0) & (code_norm > 0), total / code_norm, 0.0)
        usable = code_norm < float("inf")
    return tl.where(usable & (total == total), total, float("inf"))


@triton.jit
def first_lowest(key, index, AXIS: tl.constexpr):
    """The lowest key along an axis, and the lowest index that has it."""
    lowest = tl.min(key, axis=AXIS)
    return lowest, tl.min(tl.where(key == tl.expand_dims(lowest, AXIS), index, 0x7FFFFFFF), axis=AXIS)


@triton.jit
def reported(key, index, row_norm, METRIC: tl.constexpr):
    """What the op returns for the winner: int64 index and float32 distance; 0 and NaN if there was none."""
    won = (key < float("inf")) & (key > -float("inf"))
    distance = key
    if METRIC == "cosine":
        distance = tl.where(row_norm > 0, 1.0 + key / row_norm, 1.0)
        distance = tl.where(distance > 0, distance, 0.0)
    return tl.where(won, index, 0).to(tl.int64), tl.where(won, distance, float("nan")).to(tl.float32)
