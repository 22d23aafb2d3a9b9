"""Kernels of an EMA step: statistics first, then, with the total size of a group known, its codes."""

from __future__ import annotations

import triton
import triton.language as tl

from vqkernels._core.triton_fixed_point import is_finite

SIZES = ["num_codes", "decay", "rest", "eps"]


@triton.jit
def _number(bits, dtype: tl.constexpr):
    """A float64 passed as an integer, since a floating point argument would arrive as float32."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True).to(dtype)


@triton.jit(do_not_specialize=SIZES)
def move_statistics(
    cluster_size,  # [G * K], in place
    embed_sum,  # [G * K, D], in place
    count,  # [G * K]
    total,  # [G * K, D]
    moved,  # [G * K] int8 out: whether the statistics of the code are finite, and written
    num_codes,  # G * K
    decay,  # bits of a float64
    rest,  # 1 - decay, likewise
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    code = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = code < num_codes
    hits = tl.load(count + code, mask=real, other=0.0)
    keep, take = _number(decay, hits.dtype), _number(rest, hits.dtype)
    size = keep * tl.load(cluster_size + code, mask=real, other=0.0) + take * hits
    finite = real & is_finite(size)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        at, inside = code[:, None] * D + d[None, :], real[:, None] & (d < D)[None, :]
        old, step = tl.load(embed_sum + at, mask=inside, other=0.0), tl.load(total + at, mask=inside, other=0.0)
        finite = finite & (tl.sum(tl.where(is_finite(keep * old + take * step), 0, 1), axis=1) == 0)
    tl.store(moved + code, finite.to(tl.int8), mask=real)

    tl.store(cluster_size + code, size, mask=finite)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        at, inside = code[:, None] * D + d[None, :], finite[:, None] & (d < D)[None, :]
        old, step = tl.load(embed_sum + at, mask=inside, other=0.0), tl.load(total + at, mask=inside, other=0.0)
        tl.store(embed_sum + at, keep * old + take * step, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def write_codes(
    codebook,  # [G, K, D], in place
    cluster_size,  # [G, K]
    embed_sum,  # [G, K, D]
    moved,  # [G, K] int8
    size_of_all,  # [G] float64
    num_codes,  # K
    eps,  # bits of a float64
    D: tl.constexpr,
    SMOOTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    group = tl.program_id(1).to(tl.int64)
    code = group * num_codes + k
    size = tl.load(cluster_size + code, mask=k < num_codes, other=0.0)
    smoothed = size
    if SMOOTH:
        n, extra = tl.load(size_of_all + group), _number(eps, tl.float64)
        smoothed = ((size.to(tl.float64) + extra) / (n + num_codes * extra) * n).to(size.dtype)
    known = (k < num_codes) & (tl.load(moved + code, mask=k < num_codes, other=0) > 0) & (smoothed > 0)
    divisor = tl.where(known, smoothed, 1.0)[:, None]
    square = tl.zeros([BLOCK], tl.float64)
    largest = tl.zeros([BLOCK], size.dtype)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        at = code[:, None] * D + d[None, :]
        value = _divide(tl.load(embed_sum + at, mask=known[:, None] & (d < D)[None, :], other=0.0), divisor)
        largest = tl.maximum(largest, tl.max(tl.abs(value), axis=1))
        if NORMALIZE:
            square += tl.sum(value.to(tl.float64) * value.to(tl.float64), axis=1)
    known = known & is_finite(largest)
    length = tl.where(square > 0, tl.sqrt(square), 1.0).to(size.dtype)[:, None]
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        at, inside = code[:, None] * D + d[None, :], known[:, None] & (d < D)[None, :]
        value = _divide(tl.load(embed_sum + at, mask=inside, other=0.0), divisor)
        if NORMALIZE:
            value = _divide(value, length)
        tl.store(codebook + at, value, mask=inside)


@triton.jit
def _divide(a, b):
    """Rounded as IEEE 754 asks; the plain division of float32 is approximate."""
    if a.dtype == tl.float32:
        return tl.div_rn(a, tl.broadcast_to(b, a.shape))
    return a / b
