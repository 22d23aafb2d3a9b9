"""Micro-kernels that find the rate of one instruction, and one that shows the scores of a lookup; Triton, so that
they also run in its interpreter.

What is timed stays in registers. What is counted is in the loop; what else the loop holds goes to other pipes, so
that the counted instruction is what limits it. Look at the recorded instruction counts before believing a rate.
"""
# mypy: ignore-errors

from __future__ import annotations

import importlib

import triton
import triton.language as tl

_tile_scores = importlib.import_module("vqkernels.ops.nearest_code.triton_search")._tile_scores

MIN_INPUTS = 12  # per element of a tile and round of `min_rate`: six minima of three, two new inputs each
EXPONENTIALS = 4  # the same of `exp_rate`


@triton.jit
def min_rate(
    out,  # [programs * BLOCK]
    rounds,  # and the step: known at run time alone, so that nothing is computed ahead or rearranged
    step,
    INTEGER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lane = tl.arange(0, BLOCK).to(tl.float32)
    a, b, c, d = lane, lane + 1.0, lane + 2.0, lane + 3.0
    zero = tl.zeros([BLOCK], tl.int32 if INTEGER else tl.float32)
    m0, m1, m2, m3, m4, m5 = zero, zero, zero, zero, zero, zero
    for _ in range(rounds):
        # new values on the multiply-add pipe, four for six minima
        a, b, c, d = a * step + 1.0, b * step + 1.0, c * step + 1.0, d * step + 1.0
        if INTEGER:
            p, q, r, s = (
                a.to(tl.int32, bitcast=True),
                b.to(tl.int32, bitcast=True),
                c.to(tl.int32, bitcast=True),
                d.to(tl.int32, bitcast=True),
            )
        else:
            p, q, r, s = a, b, c, d
        m0 = tl.minimum(tl.minimum(m0, p), q)
        m1 = tl.minimum(tl.minimum(m1, q), r)
        m2 = tl.minimum(tl.minimum(m2, r), s)
        m3 = tl.minimum(tl.minimum(m3, s), p)
        m4 = tl.minimum(tl.minimum(m4, p), r)
        m5 = tl.minimum(tl.minimum(m5, q), s)
    # added, not minimised: a minimum of minima could be rearranged
    total = m0.to(tl.float32) + m1.to(tl.float32) + m2.to(tl.float32) + m3.to(tl.float32) + m4.to(tl.float32)
    tl.store(out + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), total + m5.to(tl.float32))


@triton.jit
def exp_rate(
    out,  # [programs * BLOCK]
    rounds,
    step,
    BLOCK: tl.constexpr,
):
    lane = tl.arange(0, BLOCK).to(tl.float32) * step
    a, b, c, d = lane, lane + 1.0, lane + 2.0, lane + 3.0
    for _ in range(rounds):
        a, b, c, d = tl.exp2(-a), tl.exp2(-b), tl.exp2(-c), tl.exp2(-d)
    tl.store(out + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), a + b + c + d)


@triton.jit
def lookup_scores(
    rows,  # [N rounded up to ROWS, COLUMNS] float16
    codes,  # [BLOCK_K, COLUMNS] float16
    out,  # [N rounded up to ROWS, BLOCK_K] float32 out
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    TAIL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The scores that ``scan_listed`` compares with its limits, stored."""
    COLUMNS: tl.constexpr = WIDTH * CHUNKS + TAIL
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = rows + n[:, None] * COLUMNS
    code = codes + tl.arange(0, BLOCK_K)[:, None] * COLUMNS
    held = tl.load(row + tl.arange(0, WIDTH)[None, :])
    held_tail = tl.load(row + WIDTH * CHUNKS + tl.arange(0, TAIL)[None, :]) if TAIL > 0 else held
    scores = _tile_scores(row, code, held, held_tail, WIDTH, CHUNKS, TAIL)
    tl.store(out + n[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :], scores)
