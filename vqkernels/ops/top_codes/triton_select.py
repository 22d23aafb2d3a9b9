"""Kernels that gather a superset of the M nearest codes of every row, by canonical keys alone.

Keys are compared as integers of the same order, which can be bisected. README.md says why nothing is lost.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vqkernels._core.triton_canonical import canonical_keys

SIZES = ["num_rows", "num_codes", "m", "stride_xn", "stride_xg", "stride_cg", "stride_ck"]


@triton.jit
def _ordered(key):
    """int64 that compares as the float64 does; -0 counts as 0."""
    bits = key.to(tl.int64, bitcast=True)
    return tl.where(bits < 0, -(bits & 0x7FFFFFFFFFFFFFFF), bits)


@triton.jit
def _tile_keys(
    row,  # pointers to rows, [R, 1]
    row_norm,  # [R, 1]
    codes,
    code_norm,
    start,
    num_codes,
    stride_xd,
    stride_ck,
    stride_cd,
    D: tl.constexpr,
    METRIC: tl.constexpr,
    TILE: tl.constexpr,
):
    """Keys of the codes from ``start`` on, and their indices: ``[R, TILE]``, ``[1, TILE]``."""
    k = (start + tl.arange(0, TILE))[None, :]
    inside = tl.minimum(k, num_codes - 1)
    code = codes + inside.to(tl.int64) * stride_ck
    return canonical_keys(row, stride_xd, code, stride_cd, tl.load(code_norm + inside), row_norm, D, METRIC), k


@triton.jit
def _rows(x, x_norm, num_rows, stride_xn, stride_xg, ROWS: tl.constexpr):
    """This program's rows: their numbers ``[R, 1]``, pointers to them, their norms."""
    group = tl.program_id(1).to(tl.int64)
    n = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    inside = tl.minimum(n, num_rows - 1).to(tl.int64)
    return n, x + inside * stride_xn + group * stride_xg, tl.load(x_norm + group * num_rows + inside)


@triton.jit(do_not_specialize=SIZES)
def lane_minima(
    x,  # [N, G, D]
    codes,  # [G, K, D]
    x_norm,  # [G, N]
    code_norm,  # [G, K]
    minima,  # [G, N, LANES] float64 out: lowest key among the codes k with k mod LANES equal
    num_rows,
    num_codes,
    stride_xn,
    stride_xg,
    stride_xd,
    stride_cg,
    stride_ck,
    stride_cd,
    D: tl.constexpr,
    METRIC: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    group = tl.program_id(1).to(tl.int64)
    codes += group * stride_cg
    code_norm += group * num_codes
    n, row, row_norm = _rows(x, x_norm, num_rows, stride_xn, stride_xg, ROWS)
    low = tl.full([ROWS, LANES], float("inf"), tl.float64)
    for start in range(0, num_codes, LANES):
        keys, k = _tile_keys(
            row, row_norm, codes, code_norm, start, num_codes, stride_xd, stride_ck, stride_cd, D, METRIC, LANES
        )
        low = tl.minimum(low, tl.where(k < num_codes, keys, float("inf")))
    out = minima + (group * num_rows + n) * LANES + tl.arange(0, LANES)[None, :]
    tl.store(out, low, mask=n < num_rows)


@triton.jit
def _count(
    limit,  # [R, 1] int64
    row,
    row_norm,
    codes,
    code_norm,
    num_codes,
    stride_xd,
    stride_ck,
    stride_cd,
    D: tl.constexpr,
    METRIC: tl.constexpr,
    TILE: tl.constexpr,
):
    """How many codes of each row are below a limit, and how many at it: ``[R, 1]`` twice."""
    below, equal = tl.zeros_like(limit).to(tl.int32), tl.zeros_like(limit).to(tl.int32)
    for start in range(0, num_codes, TILE):
        keys, k = _tile_keys(
            row, row_norm, codes, code_norm, start, num_codes, stride_xd, stride_ck, stride_cd, D, METRIC, TILE
        )
        order, real = _ordered(keys), k < num_codes
        below += tl.sum((real & (order < limit)).to(tl.int32), axis=1, keep_dims=True)
        equal += tl.sum((real & (order == limit)).to(tl.int32), axis=1, keep_dims=True)
    return below, equal


@triton.jit(do_not_specialize=SIZES)
def gather_candidates(
    x,  # [N, G, D]
    codes,  # [G, K, D]
    x_norm,  # [G, N]
    code_norm,  # [G, K]
    lowest,  # [G, N] float64: no key is below it
    bound,  # [G, N] float64: at least M codes have a key up to it
    key,  # [G, N, ROOM] float64 out, filled with +inf
    index,  # [G, N, ROOM] int32 out
    num_rows,
    num_codes,
    m,
    stride_xn,
    stride_xg,
    stride_xd,
    stride_cg,
    stride_ck,
    stride_cd,
    D: tl.constexpr,
    METRIC: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    ROOM: tl.constexpr,  # >= M
):
    """The codes with keys below a limit, then those at it while there is room, each by index."""
    group = tl.program_id(1).to(tl.int64)
    codes += group * stride_cg
    code_norm += group * num_codes
    n, row, row_norm = _rows(x, x_norm, num_rows, stride_xn, stride_xg, ROWS)
    at = group * num_rows + tl.minimum(n, num_rows - 1)

    # too many codes up to the bound: bisect for a lower one, which ends at the M-th lowest key at the latest
    limit = _ordered(tl.load(bound + at))
    floor = _ordered(tl.load(lowest + at))
    below, equal = _count(
        limit, row, row_norm, codes, code_norm, num_codes, stride_xd, stride_ck, stride_cd, D, METRIC, TILE
    )
    crowded = (below + equal > ROOM) & (floor < limit)
    while tl.max(crowded.to(tl.int32)) > 0:
        middle = (floor >> 1) + (limit >> 1) + (floor & limit & 1)
        less, same = _count(
            middle, row, row_norm, codes, code_norm, num_codes, stride_xd, stride_ck, stride_cd, D, METRIC, TILE
        )
        enough = crowded & (less + same >= m)
        limit, below, equal = (
            tl.where(enough, middle, limit),
            tl.where(enough, less, below),
            tl.where(enough, same, equal),
        )
        floor = tl.where(crowded & ~enough, middle + 1, floor)
        crowded = (below + equal > ROOM) & (floor < limit)

    first_below, first_equal = tl.zeros_like(below), below
    out = (group * num_rows + n) * ROOM
    for start in range(0, num_codes, TILE):
        keys, k = _tile_keys(
            row, row_norm, codes, code_norm, start, num_codes, stride_xd, stride_ck, stride_cd, D, METRIC, TILE
        )
        order, real = _ordered(keys), (k < num_codes) & (n < num_rows)
        lower, level = (real & (order < limit)).to(tl.int32), (real & (order == limit)).to(tl.int32)
        slot = tl.where(lower > 0, first_below + tl.cumsum(lower, axis=1), first_equal + tl.cumsum(level, axis=1)) - 1
        kept = (lower + level > 0) & (slot < ROOM)
        tl.store(key + out + slot, keys, mask=kept)
        tl.store(index + out + slot, tl.broadcast_to(k, keys.shape), mask=kept)
        first_below += tl.sum(lower, axis=1, keep_dims=True)
        first_equal += tl.sum(level, axis=1, keep_dims=True)
