"""Sums that do not depend on their order, for Triton kernels: the device side of csrc/cpu/fixed_point.h."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def power_of_two(exponent):
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def exponent_above(magnitude):
    """The least e, at least -1022, with ``magnitude < 2**e``; magnitude is a float64, not negative."""
    return (magnitude.to(tl.int64, bitcast=True) >> 52) - 1022


@triton.jit
def fixed_point_shift(exponent, addends):
    headroom = exponent_above(tl.maximum(addends - 1, 0).to(tl.float64))  # bits of addends - 1
    return tl.minimum(tl.minimum(62 - tl.maximum(headroom, 0), 51) - exponent, 1000)


@triton.jit
def nearest_multiple(value, scale):
    """``value * scale`` rounded to nearest even; ``scale`` is a power of two, so the product is exact."""
    offset = tl.full([], 6755399441055744.0, tl.float64)  # 1.5 * 2**52: there the last bit is worth 1
    return (value * scale + offset).to(tl.int64, bitcast=True) - offset.to(tl.int64, bitcast=True)


@triton.jit
def is_finite(value):
    return tl.abs(value) < float("inf")
