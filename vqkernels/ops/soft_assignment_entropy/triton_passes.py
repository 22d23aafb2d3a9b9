"""The passes over all pairs, as kernels. The side that owns a pass has a program per block of its vectors, which the
other side streams past in a fixed order: nothing depends on who is first.

Each kernel exists in two precisions of t (see ``_tile``), of which a flag on the device picks one per group; a
program of the other one has nothing to do.
"""

from __future__ import annotations

import triton
import triton.language as tl

SIZES = ["own_count", "other_count"]
ABSENT = tl.constexpr(1e30)  # bias of what takes no part
LEAST_LOG = tl.constexpr(-1000.0)  # e to it is 0; keeps infinities out of products


@triton.jit
def _widen(value):
    if value.dtype == tl.float64:
        return value
    return value.to(tl.float32).to(tl.float64)


@triton.jit
def _tile(
    own,  # pointers to the owners' copies, [O, 1]
    own_bias,  # [O]
    own_given,  # pointers to the owners as given, [O, 1]
    own_step,
    own_factor,  # [O] float64
    other,  # the same of the streaming side, [S, ...]
    other_bias,
    other_given,
    other_step,
    other_factor,
    other_real,  # [S]
    D: tl.constexpr,
    METRIC: tl.constexpr,
    WIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """t of all pairs ``[O, S]``: half the squared distance, the distance (euclidean), or a negated product.

    float32 from the centred copies, or float64 from the vectors as given.
    """
    here = other_real[:, None]
    if WIDE:
        total = tl.zeros([own.shape[0], other.shape[0]], tl.float64)
        for _ in range(D):
            a = _widen(tl.load(own_given))
            b = _widen(tl.trans(tl.load(other_given, mask=here, other=0.0)))
            if METRIC == "l2" or METRIC == "euclidean":
                total += (a - b) * (a - b)
            else:
                total -= a * b
            own_given += own_step
            other_given += other_step
        if METRIC == "l2":
            total *= 0.5
        elif METRIC == "euclidean":
            total = tl.sqrt(total)
        elif METRIC == "cosine":
            total *= own_factor[:, None] * other_factor[None, :]
        absent = (own_bias[:, None] >= ABSENT) | (other_bias[None, :] >= ABSENT)
        return tl.where(absent, 1e300, total)
    else:
        products = tl.zeros([own.shape[0], other.shape[0]], tl.float32)
        for start in range(0, D, COLUMNS):
            column = start + tl.arange(0, COLUMNS)[None, :]
            a = tl.load(own + column, mask=column < D, other=0.0)
            b = tl.load(other + column, mask=here & (column < D), other=0.0)
            products = tl.dot(a, tl.trans(b), products, input_precision="tf32x3")
        t = own_bias[:, None] + other_bias[None, :] - products
        if METRIC == "euclidean":
            t = tl.sqrt(tl.maximum(t + t, 0.0))
        return t


@triton.jit
def _relative(t, origin, slope, X_OWNS: tl.constexpr, WIDE: tl.constexpr):
    """log p up to a constant of the row, in the precision of t."""
    start = tl.expand_dims(origin, 1 if X_OWNS else 0)
    if WIDE:
        return tl.maximum(slope * (start - t), LEAST_LOG)
    else:
        return tl.maximum(slope.to(tl.float32) * (start.to(tl.float32) - t), LEAST_LOG)


@triton.jit
def _gain(relative, log_p, a, w, v, floor, FLOORED: tl.constexpr):
    """a A(log p) + w v up to a constant of the row; a and w of x, v of the codes, broadcast."""
    slope = -relative
    if FLOORED:
        slope = -tl.where(log_p > floor, log_p + 1.0, floor)
    return a * slope + w * v


@triton.jit(do_not_specialize=SIZES)
def normalize(
    own, own_bias, own_given, own_factor, own_stride, own_group_stride, own_step, own_count,
    other, other_bias, other_given, other_factor, other_stride, other_group_stride, other_step, other_count,
    slope, wide,
    least,  # [G, N] float64 out: least t
    log_sum,  # [G, N] float64 out
    entropy,  # [G, N] float64 out
    D: tl.constexpr, METRIC: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr, OWNERS: tl.constexpr,
    STREAM: tl.constexpr,
):  # fmt: skip
    """x owns: the least t of a row, log sum_k e^(slope (least - t)), the entropy."""
    group = tl.program_id(1).to(tl.int64)
    if tl.load(wide + group) != WIDE:
        return
    scale = tl.load(slope)
    factor = scale if WIDE else scale.to(tl.float32)
    n = tl.program_id(0) * OWNERS + tl.arange(0, OWNERS)
    at = group * own_count + tl.minimum(n, own_count - 1).to(tl.int64)
    row = own + at[:, None] * D
    bias, length = tl.load(own_bias + at), tl.load(own_factor + at)
    given = own_given + group * own_group_stride + (at - group * own_count)[:, None] * own_stride

    low = tl.full([OWNERS], 1e300 if WIDE else 1e30, tl.float64 if WIDE else tl.float32)
    z = tl.zeros([OWNERS], tl.float64)
    lz = tl.zeros([OWNERS], tl.float64)
    for start in range(0, other_count, STREAM):
        k = start + tl.arange(0, STREAM)
        to = group * other_count + k.to(tl.int64)
        t = _tile(
            row, bias, given, own_step, length,
            other + to[:, None] * D, tl.load(other_bias + to, mask=k < other_count, other=ABSENT),
            other_given + group * other_group_stride + k.to(tl.int64)[:, None] * other_stride, other_step,
            tl.load(other_factor + to, mask=k < other_count, other=0.0), k < other_count,
            D, METRIC, WIDE, COLUMNS,
        )  # fmt: skip
        lower = tl.minimum(low, tl.min(t, axis=1))
        back = tl.maximum(factor * (lower - low), LEAST_LOG).to(tl.float32)
        shrink = tl.exp(back).to(tl.float64)
        lz = shrink * (lz + back.to(tl.float64) * z)
        z = shrink * z
        low = lower
        log = tl.maximum(factor * (lower[:, None] - t), LEAST_LOG).to(tl.float32)
        e = tl.exp(log)
        z += tl.sum(e, axis=1).to(tl.float64)
        lz += tl.sum(log * e, axis=1).to(tl.float64)
    real = n < own_count
    tl.store(least + at, low.to(tl.float64), mask=real)
    tl.store(log_sum + at, tl.log(z), mask=real)
    tl.store(entropy + at, tl.maximum(tl.log(z) - lz / z, 0.0), mask=real)


@triton.jit(do_not_specialize=SIZES)
def sum_terms(
    own, own_bias, own_given, own_factor, own_stride, own_group_stride, own_step, own_count,
    other, other_bias, other_given, other_factor, other_stride, other_group_stride, other_step, other_count,
    slope, wide, origin, rest, weight, grad_entropy, grad_assigned,
    floor,
    sums,  # [G, owners] float64 out
    D: tl.constexpr, METRIC: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr, OWNERS: tl.constexpr,
    STREAM: tl.constexpr,
    TERM: tl.constexpr,  # "weight" (codes own), "gain" or "floored entropy" (x owns)
    FLOORED: tl.constexpr,
):  # fmt: skip
    """sum of p times a term of the pair, for each owner."""
    X_OWNS: tl.constexpr = TERM != "weight"
    group = tl.program_id(1).to(tl.int64)
    if tl.load(wide + group) != WIDE:
        return
    scale = tl.load(slope)
    i = tl.program_id(0) * OWNERS + tl.arange(0, OWNERS)
    at = group * own_count + tl.minimum(i, own_count - 1).to(tl.int64)
    row = own + at[:, None] * D
    bias, length = tl.load(own_bias + at), tl.load(own_factor + at)
    given = own_given + group * own_group_stride + (at - group * own_count)[:, None] * own_stride
    total = tl.zeros([OWNERS], tl.float64)
    for start in range(0, other_count, STREAM):
        j = start + tl.arange(0, STREAM)
        here = j < other_count
        to = group * other_count + j.to(tl.int64)
        t = _tile(
            row, bias, given, own_step, length,
            other + to[:, None] * D, tl.load(other_bias + to, mask=here, other=ABSENT),
            other_given + group * other_group_stride + j.to(tl.int64)[:, None] * other_stride, other_step,
            tl.load(other_factor + to, mask=here, other=0.0), here,
            D, METRIC, WIDE, COLUMNS,
        )  # fmt: skip
        x_at, code_at = (at, to) if X_OWNS else (to, at)
        x_real, code_real = (i < own_count, here) if X_OWNS else (here, i < own_count)
        x_axis: tl.constexpr = 1 if X_OWNS else 0
        deep = _relative(t, tl.load(origin + x_at, mask=x_real, other=0.0), scale, X_OWNS, WIDE)
        constant = tl.expand_dims(tl.load(rest + x_at, mask=x_real, other=0.0), x_axis)
        relative, log_p = deep.to(tl.float32), (deep + constant).to(tl.float32)
        w = tl.expand_dims(tl.load(weight + x_at, mask=x_real, other=0.0), x_axis)
        if TERM == "weight":
            term = w
        elif TERM == "gain":
            a = tl.expand_dims(tl.load(grad_entropy + x_at, mask=x_real, other=0.0), x_axis)
            v = tl.expand_dims(tl.load(grad_assigned + code_at, mask=code_real, other=0.0), 1 - x_axis)
            term = _gain(relative, log_p, a, w, v, floor, FLOORED)
        else:
            term = -tl.maximum(log_p, floor)
        total += tl.sum(tl.exp(log_p) * term, axis=1).to(tl.float64)
    tl.store(sums + at, total, mask=i < own_count)


@triton.jit(do_not_specialize=SIZES)
def pull(
    own, own_bias, own_given, own_factor, own_stride, own_group_stride, own_step, own_count,
    other, other_bias, other_given, other_factor, other_stride, other_group_stride, other_step, other_count,
    slope, wide, origin, rest, weight, grad_entropy, grad_assigned,
    floor,
    mean_gain,  # [G, N] float32
    least_t,  # [G] float32: nearer pairs are the same point (euclidean)
    moved,  # [G, owners, D] float32 out: sum h y over the streaming copies y
    total,  # [G, owners] float64 out: sum h
    grad_log,  # [G, owners] float64 out: sum g log p
    D: tl.constexpr, METRIC: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr, OWNERS: tl.constexpr,
    STREAM: tl.constexpr, X_OWNS: tl.constexpr, FLOORED: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """With g = p (gain - mean gain) and h = g, or g / t (euclidean): sums of h y, h and g log p; D in slices."""
    group = tl.program_id(1).to(tl.int64)
    if tl.load(wide + group) != WIDE:
        return
    scale = tl.load(slope)
    nearest = tl.load(least_t + group)
    i = tl.program_id(0) * OWNERS + tl.arange(0, OWNERS)
    at = group * own_count + tl.minimum(i, own_count - 1).to(tl.int64)
    row = own + at[:, None] * D
    bias, length = tl.load(own_bias + at), tl.load(own_factor + at)
    given = own_given + group * own_group_stride + (at - group * own_count)[:, None] * own_stride
    column = tl.program_id(2) * SLICE + tl.arange(0, SLICE)[None, :]
    sums = tl.zeros([OWNERS, SLICE], tl.float32)
    h_sum = tl.zeros([OWNERS], tl.float64)
    log_sum = tl.zeros([OWNERS], tl.float64)
    for start in range(0, other_count, STREAM):
        j = start + tl.arange(0, STREAM)
        here = j < other_count
        to = group * other_count + j.to(tl.int64)
        t = _tile(
            row, bias, given, own_step, length,
            other + to[:, None] * D, tl.load(other_bias + to, mask=here, other=ABSENT),
            other_given + group * other_group_stride + j.to(tl.int64)[:, None] * other_stride, other_step,
            tl.load(other_factor + to, mask=here, other=0.0), here,
            D, METRIC, WIDE, COLUMNS,
        )  # fmt: skip
        x_at, code_at = (at, to) if X_OWNS else (to, at)
        x_real, code_real = (i < own_count, here) if X_OWNS else (here, i < own_count)
        x_axis: tl.constexpr = 1 if X_OWNS else 0
        deep = _relative(t, tl.load(origin + x_at, mask=x_real, other=0.0), scale, X_OWNS, WIDE)
        constant = tl.expand_dims(tl.load(rest + x_at, mask=x_real, other=0.0), x_axis)
        relative, log_p = deep.to(tl.float32), (deep + constant).to(tl.float32)
        w = tl.expand_dims(tl.load(weight + x_at, mask=x_real, other=0.0), x_axis)
        a = tl.expand_dims(tl.load(grad_entropy + x_at, mask=x_real, other=0.0), x_axis)
        mean = tl.expand_dims(tl.load(mean_gain + x_at, mask=x_real, other=0.0), x_axis)
        v = tl.expand_dims(tl.load(grad_assigned + code_at, mask=code_real, other=0.0), 1 - x_axis)
        h = tl.exp(log_p) * (_gain(relative, log_p, a, w, v, floor, FLOORED) - mean)
        log_sum += tl.sum(h * relative, axis=1).to(tl.float64)
        if METRIC == "euclidean":
            t = t.to(tl.float32)
            h = tl.where(t > nearest, h / tl.maximum(t, nearest), 0.0)
        h_sum += tl.sum(h, axis=1).to(tl.float64)
        copies = tl.load(other + to[:, None] * D + column, mask=here[:, None] & (column < D), other=0.0)
        sums = tl.dot(h, copies, sums, input_precision="tf32x3")
    real = i < own_count
    tl.store(moved + at[:, None] * D + column, sums, mask=real[:, None] & (column < D))
    if tl.program_id(2) == 0:
        tl.store(total + at, h_sum, mask=real)
        tl.store(grad_log + at, log_sum, mask=real)
