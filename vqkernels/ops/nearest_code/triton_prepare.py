"""Kernels that turn vectors and codes into half precision rows whose product is the score to minimise.

    [x', 2^14 r, 2^14 r, 2^15] . [-c', h, h', b] = r |c'|^2 / 2 - x'.c' + b 2^15

x' and c' are shifted by the codebook mean (dot, cosine: codes alone) and scaled by powers of two, 2^14 h and 2^14 h'
add up to |c'|^2 / 2 (dot, cosine: 0), b is 0, or 2^15 for a code that must not win. With PIECES = 3 every entry
is a pair of halves, the columns are [x_hi, x_lo, x_hi] and [c_hi, c_hi, c_lo]. README.md has the error bound.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vqkernels._core.triton_canonical import widen

SIZES = ["num_rows", "num_codes", "stride_xn", "stride_xg", "stride_cg", "stride_ck", "codes_per_program"]


@triton.jit
def _power_of_two(exponent):
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _exponent(value):
    """floor(log2(value)) of a positive normal float64."""
    return ((value.to(tl.int64, bitcast=True) >> 52) & 0x7FF) - 1023


@triton.jit
def _in_range(square):
    # far enough from both ends of float64 for every product formed from it
    return (square >= 2.0**-900) & (square <= 2.0**900)


@triton.jit(do_not_specialize=SIZES)
def measure_box(
    codes,  # [G, K, D]
    norm,  # [G, K]
    box,  # [G, PARTS, 3, D] float64 out: sum, lowest, highest of a part of the codes
    num_codes,
    stride_cg,
    stride_ck,
    stride_cd,
    codes_per_program,
    D: tl.constexpr,
    METRIC: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    part = tl.program_id(0)
    group = tl.program_id(1).to(tl.int64)
    first = part * codes_per_program
    last = tl.minimum(first + codes_per_program, num_codes)
    out = box + (group * tl.num_programs(0) + part) * 3 * D
    for start in range(0, D, WIDTH):
        d = start + tl.arange(0, WIDTH)
        total = tl.zeros([WIDTH], tl.float64)
        low = tl.full([WIDTH], float("inf"), tl.float64)
        high = tl.full([WIDTH], -float("inf"), tl.float64)
        for begin in range(first, last, BLOCK):
            k = begin + tl.arange(0, BLOCK)
            length = tl.load(norm + group * num_codes + k, mask=k < last, other=float("nan"))[:, None]
            code = codes + group * stride_cg + k.to(tl.int64)[:, None] * stride_ck
            inside = (length == length) & (d < D)[None, :]
            value = widen(tl.load(code + d.to(tl.int64)[None, :] * stride_cd, mask=inside, other=0.0))
            if METRIC == "cosine":
                inside = inside & (length < float("inf"))
                value = tl.where(length > 0, value / length, 0.0)
            total += tl.sum(tl.where(inside, value, 0.0), axis=0)
            low = tl.minimum(low, tl.min(tl.where(inside, value, float("inf")), axis=0))
            high = tl.maximum(high, tl.max(tl.where(inside, value, -float("inf")), axis=0))
        tl.store(out + d, total, mask=d < D)
        tl.store(out + D + d, low, mask=d < D)
        tl.store(out + 2 * D + d, high, mask=d < D)


@triton.jit(do_not_specialize=SIZES)
def place_frame(
    box,  # [G, PARTS, 3, D]
    centre,  # [G, D] float64 out
    scale,  # [G, 2] float64 out: power of two (NaN: the codebook has no usable range), |centre|
    num_codes,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    group = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)[:, None]
    squares = tl.zeros([WIDTH], tl.float64)
    middle_squares = tl.zeros([WIDTH], tl.float64)
    for start in range(0, D, WIDTH):
        d = start + tl.arange(0, WIDTH)
        inside = (d < D)[None, :]
        at = box + (group * PARTS + part) * 3 * D + d[None, :]
        middle = tl.sum(tl.load(at, mask=inside, other=0.0), axis=0) / num_codes
        low = tl.min(tl.load(at + D, mask=inside, other=0.0), axis=0)
        high = tl.max(tl.load(at + 2 * D, mask=inside, other=0.0), axis=0)
        middle = tl.where(high >= low, middle, 0.0)
        reach = tl.where(high >= low, tl.maximum(high - middle, middle - low), 0.0)
        squares += reach * reach
        middle_squares += middle * middle
        tl.store(centre + group * D + d, middle, mask=d < D)
    radius, distance = tl.sum(squares, axis=0), tl.sum(middle_squares, axis=0)
    # all codes within sqrt(radius) of the centre: scaled to less than 2^14
    power = _power_of_two(13 - _exponent(tl.sqrt(radius)))
    power = tl.where(_in_range(radius), power, tl.where(radius == 0, 1.0, float("nan")))
    tl.store(scale + 2 * group, tl.where(distance <= 2.0**900, power, float("nan")))
    tl.store(scale + 2 * group + 1, tl.sqrt(distance))


@triton.jit
def _halves(value, low):
    """A float64 tensor as its nearest half, or (where ``low``) as what that leaves."""
    single = value.to(tl.float32)
    half = single.to(tl.float16)
    return tl.where(low, (single - half.to(tl.float32)).to(tl.float16), half)


@triton.jit(do_not_specialize=SIZES)
def pack_codes(
    codes,  # [G, K, D]
    norm,  # [G, K]
    centre,  # [G, D]
    scale,  # [G, 2]
    packed,  # [G, K rounded up to BLOCK, COLUMNS] float16 out
    radius,  # [G] int32, starts at 0; out: the bits of a float32 no less than the largest |c'|
    num_codes,
    stride_cg,
    stride_ck,
    stride_cd,
    D: tl.constexpr,
    METRIC: tl.constexpr,
    PIECES: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    group = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    length = tl.load(norm + group * num_codes + k, mask=k < num_codes, other=float("nan"))
    power = tl.load(scale + 2 * group)
    # a scale of NaN makes every code unusable
    usable = length + power == length + power
    if METRIC == "cosine":
        usable = usable & (length < float("inf"))
    code = codes + group * stride_cg + k.to(tl.int64)[:, None] * stride_ck
    out = packed + (group * tl.num_programs(0) * BLOCK + k)[:, None] * COLUMNS
    square = tl.zeros([BLOCK], tl.float64)
    for start in range(0, COLUMNS, STEP):
        column = (start + tl.arange(0, STEP))[None, :]
        piece, d = column // D, column % D
        inside = usable[:, None] & (piece < PIECES)
        value = widen(tl.load(code + d.to(tl.int64) * stride_cd, mask=inside, other=0.0))
        if METRIC == "cosine":
            value = tl.where(length[:, None] > 0, value / length[:, None], 0.0)
        value = tl.where(inside, (value - tl.load(centre + group * D + d)) * power, 0.0)
        square += tl.sum(tl.where(piece == 0, value * value, 0.0), axis=1)
        special = (column >= PIECES * D) & (column < PIECES * D + 3)
        tl.store(out + column, -_halves(value, piece == 2), mask=(column < COLUMNS) & ~special)
    half_square = square * 0.0 if METRIC != "l2" else square * 2.0**-15
    end = packed + (group * tl.num_programs(0) * BLOCK + k) * COLUMNS + PIECES * D
    tl.store(end, _halves(half_square, False))
    tl.store(end + 1, _halves(half_square, True))
    tl.store(end + 2, tl.where(usable, 0.0, 2.0**15).to(tl.float16))
    # rounded up, whatever the rounding of the sum, the root and the conversion
    largest = (tl.sqrt(tl.max(square, axis=0)) * (1 + 2.0**-20)).to(tl.float32)
    # the bits of positive numbers are ordered as they are
    tl.atomic_max(radius + group, largest.to(tl.int32, bitcast=True))


@triton.jit(do_not_specialize=SIZES)
def pack_rows(
    x,  # [N, G, D]
    centre,  # [G, D]
    scale,  # [G, 2]
    radius,  # [G] float32
    packed,  # [G, N rounded up to BLOCK, COLUMNS] float16 out
    slack,  # [G, N] float32 out: scores this close cannot be told apart; +inf: no usable score, NaN: no usable row
    norm,  # [G, N] float64 out: canonical |x|
    num_rows,
    stride_xn,
    stride_xg,
    stride_xd,
    D: tl.constexpr,
    METRIC: tl.constexpr,
    PIECES: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    SCORE_ERROR: tl.constexpr,
    HALF_FLOOR: tl.constexpr,
):
    group = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = x + tl.minimum(n, num_rows - 1).to(tl.int64) * stride_xn + group * stride_xg
    square = tl.zeros([BLOCK], tl.float64)
    shifted_square = tl.zeros([BLOCK], tl.float64)
    nothing = tl.zeros([BLOCK], tl.float64)
    entry, middle = row, centre + group * D
    for _ in range(D):
        value = widen(tl.load(entry))
        square += value * value
        nothing += value - value
        shifted = value - tl.load(middle)
        shifted_square += shifted * shifted
        entry += stride_xd
        middle += 1
    length = tl.sqrt(square)
    finite = nothing == nothing
    power = tl.load(scale + 2 * group)
    codes = tl.load(radius + group).to(tl.float64)
    if METRIC == "l2":
        # a row further out than every code is scaled down with its norm columns
        size = tl.sqrt(shifted_square) * power
        near = size < 2.0**14
        rescale = tl.where(near, 1.0, _power_of_two(13 - _exponent(tl.where(near, 1.0, size))))
        ranged = (shifted_square <= 2.0**900) & (rescale >= 2.0**-28)
        size = size * rescale
        far = size + rescale * codes
        error = SCORE_ERROR * (size * codes + rescale * codes * codes / 2) + 2.0**-10 * rescale
        error += (D + 3) * 2.0**-54 * far * far / rescale
        power = power * rescale
    else:
        # no norm column: a row may have any scale
        ranged = _in_range(square)
        rescale = 0.0 * square
        row_power = _power_of_two(13 - _exponent(tl.where(ranged, length, 1.0)))
        size = length * row_power
        error = SCORE_ERROR * size * codes
        error += (3 * D + 16) * 2.0**-53 * size * (codes + power * tl.load(scale + 2 * group + 1))
        power = row_power
        if METRIC == "cosine":
            finite = finite & (length < float("inf"))
    error += HALF_FLOOR * (size + codes)
    ranged = ranged & finite & (error == error)
    limit = tl.where(ranged, (2.0 + 2.0**-9) * error, float("inf"))
    at = group * num_rows + n
    tl.store(slack + at, tl.where(finite, limit, float("nan")).to(tl.float32), mask=n < num_rows)
    tl.store(norm + at, length, mask=n < num_rows)

    out = packed + (group * tl.num_programs(0) * BLOCK + n)[:, None] * COLUMNS
    for start in range(0, COLUMNS, STEP):
        column = (start + tl.arange(0, STEP))[None, :]
        piece, d = column // D, column % D
        inside = ranged[:, None] & (piece < PIECES)
        value = widen(tl.load(row[:, None] + d.to(tl.int64) * stride_xd, mask=inside, other=0.0))
        if METRIC == "l2":
            value = value - tl.load(centre + group * D + d)
        halves = _halves(tl.where(inside, value * power[:, None], 0.0), piece == 1)
        special = column - PIECES * D
        unit = tl.where((special == 0) | (special == 1), 2.0**14 * rescale[:, None], 2.0**15)
        unit = tl.where(ranged[:, None] & (special >= 0) & (special < 3), unit, 0.0).to(tl.float16)
        tl.store(out + column, tl.where(inside, halves, unit), mask=column < COLUMNS)
