"""What each operator of an exported quantizer is made of: standard ONNX operators, under 2^22 pairs at a time.

Arithmetic is float32, float64 for float64 vectors or codes. Squared distances are expanded around the mean code,
where they cancel least; the distance reported is that of the code chosen, from differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from onnxscript import DOUBLE, INT64, script
from onnxscript import opset18 as op
from onnxscript.ir import DataType, tensor
from onnxscript.values import Opset

Value = Any  # of the graph that is being built

_PAIRS = 1 << 22  # numbers of pairs of a vector and a code, held at a time
_FEW = 1 << 10  # so few codes that one product serves any number of vectors
_OURS = Opset("vqkernels", 1)


@script(_OURS, default_opset=op)
def lowest_in_turn(x, codes, offset, m, pairs) -> INT64[...]:
    """Places of the M lowest ``x @ codes + offset``: ``[G, N, D], [G, D, K], [G, 1, K], [1], [1] -> [G, N, M]``"""
    one = op.Constant(value_ints=[1])
    last = op.Constant(value_ints=[2])
    rows = op.ReduceProd(op.Shape(x, start=0, end=2), keepdims=1)
    size = op.Max(op.Div(pairs, op.Max(rows, one)), one)
    trips = op.Squeeze(op.Div(op.Shape(codes, start=2) + size - one, size))
    shape = op.Concat(op.Shape(x, start=0, end=2), m, axis=0)
    best = op.Expand(op.CastLike(op.Constant(value_float=math.inf), x), shape)
    chosen = op.Expand(op.Constant(value_ints=[0]), shape)
    for i in range(trips):
        start = i * size
        keys = op.MatMul(x, op.Slice(codes, start, start + size, last)) + op.Slice(offset, start, start + size, last)
        # what was kept stands before what follows: of equal keys the first wins
        best, place = op.TopK(op.Concat(best, keys, axis=2), m, axis=2, largest=0)
        kept = op.GatherElements(chosen, op.Min(place, m - one), axis=2)
        chosen = op.Where(place < m, kept, start + place - m)
    return chosen


@script(_OURS, default_opset=op)
def lowest_of_levels(x, codes, offset, weights, power, pairs) -> INT64[...]:
    """Place of the lowest sum of ``weights * |x - code|^(2 power)``, plus ``offset``:
    ``[L, N, 1, D], [L, 1, K, D], [1, K], [L, 1, 1] -> [N]``
    """
    one = op.Constant(value_ints=[1])
    second = op.Constant(value_ints=[1])
    third = op.Constant(value_ints=[2])
    rows = op.ReduceProd(op.Shape(x), keepdims=1)
    size = op.Max(op.Div(pairs, op.Max(rows, one)), one)
    trips = op.Squeeze(op.Div(op.Shape(codes, start=2, end=3) + size - one, size))
    best = op.Expand(op.CastLike(op.Constant(value_float=math.inf), x), op.Shape(x, start=1, end=2))
    chosen = op.Expand(op.Constant(value_ints=[0]), op.Shape(x, start=1, end=2))
    for i in range(trips):
        start = i * size
        apart = x - op.Slice(codes, start, start + size, third)
        level = op.Pow(op.ReduceSumSquare(apart, op.Constant(value_ints=[3]), keepdims=0), power) * weights
        keys = op.ReduceSum(level, op.Constant(value_ints=[0]), keepdims=0) + op.Slice(
            offset, start, start + size, second
        )
        value = op.ReduceMin(keys, second, keepdims=0)
        nearer = value < best
        chosen = op.Where(nearer, start + op.ArgMin(keys, axis=1, keepdims=0), chosen)
        best = op.Where(nearer, value, best)
    return chosen


@script(_OURS, default_opset=op)
def soft_in_turn(
    x, codes, of_x, of_codes, lowest, power, weight, temperature, floor, pairs
) -> tuple[DOUBLE[...], DOUBLE[...], DOUBLE[...], DOUBLE[...]]:
    """Least distance, log of the sum, entropy and weighted assignment of every vector, so many vectors at a time.

    Distances are ``max(x @ codes + of_x + of_codes, lowest)^power``: ``[G, N, D], [G, D, K], [G, N, 1], [G, 1, K],
    [], []``, and weights ``[G, N, 1]``, give ``[G, N, 1]`` three times and ``[G, 1, K]``.
    """
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    last = op.Constant(value_ints=[2])
    n = op.Shape(x, start=1, end=2)
    size = op.Max(op.Div(pairs, op.ReduceProd(op.Shape(of_codes), keepdims=1)), one)
    trips = op.Squeeze(op.Div(n + size - one, size))
    nothing = op.CastLike(op.Constant(value_float=0.0), x)
    least = op.Slice(of_x, zero, zero, one)
    log_sum = op.Identity(least)
    entropy = op.Identity(least)
    assigned = op.Expand(nothing, op.Shape(of_codes))
    for i in range(trips):
        start = i * size
        end = start + size
        linear = op.MatMul(op.Slice(x, start, end, one), codes) + op.Slice(of_x, start, end, one) + of_codes
        distance = op.Pow(op.Max(linear, lowest), power)
        nearest = op.ReduceMin(distance, last, keepdims=1)
        logits = (nearest - distance) / temperature
        total = op.Log(op.ReduceSum(op.Exp(logits), last, keepdims=1))
        log_p = logits - total
        p = op.Exp(log_p)
        told = op.Where(p > nothing, op.Max(log_p, floor), nothing)
        least = op.Concat(least, nearest, axis=1)
        log_sum = op.Concat(log_sum, total, axis=1)
        entropy = op.Concat(entropy, op.Neg(op.ReduceSum(p * told, last, keepdims=1)), axis=1)
        assigned = assigned + op.ReduceSum(p * op.Slice(weight, start, end, one), one, keepdims=1)
    return least, log_sum, entropy, assigned


def nearest_code(x: Value, codebook: Value, metric: str, backend: str | None) -> tuple[Value, Value]:
    chosen, distance = _lookup(x, codebook, 1, metric)
    return op.Squeeze(chosen, [2]), op.Squeeze(distance, [2])


def top_codes(x: Value, codebook: Value, m: int, metric: str, backend: str | None) -> tuple[Value, Value]:
    return _lookup(x, codebook, m, metric)


def gather_codes(codebook: Value, indices: Value, backend: str | None) -> Value:  # [G, K, D], [N, G] -> [N, G, D]
    codes = _gather(codebook, op.Unsqueeze(op.Max(indices, 0), [2]))
    there = op.Unsqueeze(op.GreaterOrEqual(indices, 0), [2])
    return op.Where(there, op.Squeeze(codes, [2]), op.CastLike(op.Constant(value_float=0.0), codebook))


def multilevel_nearest_code(
    xs: list[Value], codebooks: list[Value], weights: list[float], squared: bool, backend: str | None
) -> tuple[Value, Value]:  # L of [N, D_l], L of [K, D_l] -> [N], [N]
    dtype = _widest(*xs, *codebooks)
    # one array of levels: columns of zeros are no distance
    width = max(book.shape[1] for book in codebooks)
    x, codes = (op.Concat(*(_padded(t, width, dtype) for t in given), axis=0) for given in (xs, codebooks))
    usable, sound = (op.Not(_any(op.Not(_finite(t)), 0)) for t in (x, codes))  # [N], [K]
    x, codes = (_zero_unless(_finite(t), t) for t in (x, codes))
    weight = op.Unsqueeze(_number(weights, dtype), [1, 2])  # [L, 1, 1]
    power = _number(1.0 if squared else 0.5, dtype)
    apart, offset = (op.Unsqueeze(x, [2]), op.Unsqueeze(codes, [1])), op.Unsqueeze(_penalty(sound, dtype), [0])
    pairs = op.Constant(value_ints=[_PAIRS])
    chosen = op.Where(usable, lowest_of_levels(*apart, offset, weight, power, pairs), 0)
    levels = op.Pow(op.ReduceSumSquare(op.Sub(x, op.Gather(codes, chosen, axis=1)), [2], keepdims=0), power)
    distance = op.ReduceSum(op.Mul(levels, op.Squeeze(weight, [2])), [0], keepdims=0)
    return chosen, _told(distance, op.And(usable, op.Gather(sound, chosen)))


def soft_assignment_entropy(
    x: Value,
    codebook: Value,
    weight: Value,
    temperature: Value,
    metric: str,
    floor: float,
    remember: bool,
    backend: str | None,
) -> tuple[Value, Value, Value, Value]:  # [N, G, D], [G, K, D], [N, G], [] -> [N, G] three times, [G, K]
    dtype = DataType.DOUBLE
    x, codes = op.Transpose(op.Cast(x, to=dtype), perm=[1, 0, 2]), op.Cast(codebook, to=dtype)
    sound = _finite(codes)  # [G, K]
    x, codes = _zero_unless(_finite(x), x), _zero_unless(sound, codes)
    x, signed, offset = _linear(x, codes, "l2" if metric == "euclidean" else metric, dtype)
    squares = metric in ("l2", "euclidean")
    of_x = op.ReduceSumSquare(x, [2]) if squares else op.Mul(op.ReduceSum(x, [2]), _number(0.0, dtype))
    # beyond every distance, so that its share is 0
    of_codes = op.Unsqueeze(op.Where(sound, offset, _number(1e300, dtype)), [1])
    weights = op.Unsqueeze(op.Transpose(weight, perm=[1, 0]), [2])  # [G, N, 1]
    *rows, assigned = soft_in_turn(
        x,
        signed,
        of_x,
        of_codes,
        _number(0.0 if squares else -1e300, dtype),
        _number(0.5 if metric == "euclidean" else 1.0, dtype),
        weights,
        temperature,
        _number(max(floor, -1e300), dtype),
        op.Constant(value_ints=[_PAIRS]),
    )
    counted = op.Greater(weights, _number(0.0, dtype))
    rows = [op.Transpose(op.Squeeze(op.Where(counted, row, _number(0.0, dtype)), [2]), perm=[1, 0]) for row in rows]
    return rows[0], rows[1], rows[2], op.Squeeze(assigned, [1])


TRANSLATIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (nearest_code, top_codes, gather_codes, multilevel_nearest_code, soft_assignment_entropy)
}


def _lookup(
    x: Value, codebook: Value, m: int, metric: str
) -> tuple[Value, Value]:  # [N, G, D], [G, K, D] -> [N, G, M], [N, G, M]
    dtype, few = _widest(x, codebook), _are_few(x, codebook)
    x, codes = op.Cast(x, to=dtype), op.Cast(codebook, to=dtype)
    usable, sound = _finite(x), _finite(codes)  # [N, G], [G, K]
    rows = op.Transpose(_zero_unless(usable, x), perm=[1, 0, 2])
    rows, signed, offset = _linear(rows, _zero_unless(sound, codes), metric, dtype)
    offset = op.Unsqueeze(op.Add(offset, _penalty(sound, dtype)), [1])  # [G, 1, K]
    places = op.Constant(value_ints=[m])
    if few:
        _, chosen = op.TopK(op.Add(op.MatMul(rows, signed), offset), places, axis=2, largest=0)
    else:
        chosen = lowest_in_turn(rows, signed, offset, places, op.Constant(value_ints=[_PAIRS]))
    usable = op.Unsqueeze(usable, [2])
    chosen = op.Where(usable, op.Transpose(chosen, perm=[1, 0, 2]), 0)  # [N, G, M]
    x, taken = op.Unsqueeze(x, [2]), _gather(codes, chosen)  # [N, G, 1, D], [N, G, M, D]
    if metric == "cosine":
        x, taken = _unit(x, dtype), _unit(taken, dtype)
    if metric == "l2":
        distance = op.ReduceSumSquare(op.Sub(x, taken), [3], keepdims=0)
    else:
        distance = op.Neg(op.ReduceSum(op.Mul(x, taken), [3], keepdims=0))
    if metric == "cosine":
        distance = op.Max(op.Add(distance, _number(1.0, dtype)), _number(0.0, dtype))
    return chosen, _told(distance, usable)


def _linear(
    x: Value, codes: Value, metric: str, dtype: DataType
) -> tuple[Value, Value, Value]:  # [G, N, D], [G, K, D] -> [G, N, D], [G, D, K], [G, K]
    """``x``, ``codes`` and ``offset`` so that ``x @ codes + offset`` orders codes as their distances do."""
    factor = -1.0
    if metric == "l2":
        centre = op.ReduceMean(codes, [1])
        x, codes, factor = op.Sub(x, centre), op.Sub(codes, centre), -2.0
    elif metric == "cosine":
        x, codes = _unit(x, dtype), _unit(codes, dtype)
    of_codes = op.ReduceSumSquare(codes, [2], keepdims=0)
    offset = of_codes if metric == "l2" else op.Mul(of_codes, _number(0.0, dtype))
    return x, op.Mul(op.Transpose(codes, perm=[0, 2, 1]), _number(factor, dtype)), offset


def _unit(x: Value, dtype: DataType) -> Value:
    """Of unit length, however long it was; a zero vector stays zero."""
    # first to entries of at most 1, whose squares are numbers
    for length in (lambda t: op.ReduceMax(op.Abs(t), [-1]), lambda t: op.ReduceL2(t, [-1])):
        size = length(x)
        x = op.Div(x, op.Where(op.Greater(size, _number(0.0, dtype)), size, _number(1.0, dtype)))
    return x


def _gather(codes: Value, indices: Value) -> Value:  # [G, K, D], [N, G, M] -> [N, G, M, D]
    sizes = op.Shape(codes)
    groups, k, d = (op.Gather(sizes, [place]) for place in range(3))
    first = op.Mul(op.Range(0, op.Squeeze(groups), 1), k)  # [G]
    rows = op.Reshape(codes, op.Concat(op.Mul(groups, k), d, axis=0))
    return op.Gather(rows, op.Add(indices, op.Unsqueeze(first, [1])))


def _finite(x: Value) -> Value:  # [..., D] -> [...] bool
    return op.Not(_any(op.Or(op.IsNaN(x), op.IsInf(x)), -1))


def _any(mask: Value, axis: int) -> Value:
    return op.Cast(op.ReduceMax(op.Cast(mask, to=DataType.INT32), [axis], keepdims=0), to=DataType.BOOL)


def _zero_unless(there: Value, x: Value) -> Value:  # [...] bool, [..., D]
    return op.Where(op.Unsqueeze(there, [-1]), x, op.CastLike(op.Constant(value_float=0.0), x))


def _penalty(sound: Value, dtype: DataType) -> Value:  # [..., K] bool -> [..., K]
    # beyond the distances of all codes that are finite, and no number less
    return op.Where(sound, _number(0.0, dtype), _number(1e38 if dtype == DataType.FLOAT else 1e300, dtype))


def _told(distance: Value, usable: Value) -> Value:
    """As float32; NaN unless it is the distance of a vector and a code that are finite."""
    told = op.And(usable, op.Not(op.Or(op.IsNaN(distance), op.IsInf(distance))))
    return op.Where(told, op.Cast(distance, to=DataType.FLOAT), _number(math.nan, DataType.FLOAT))


def _padded(x: Value, width: int, dtype: DataType) -> Value:  # [N, D] -> [1, N, width]
    pads = op.Constant(value_ints=[0, 0, 0, width - x.shape[1]])
    return op.Unsqueeze(op.Pad(op.Cast(x, to=dtype), pads), [0])


def _widest(*values: Value) -> DataType:
    return DataType.DOUBLE if DataType.DOUBLE in {value.dtype for value in values} else DataType.FLOAT


def _are_few(x: Value, codes: Value) -> bool:  # [N, G, D], [G, K, D]
    k, sizes = codes.shape[1], [*x.shape[:2], codes.shape[1]]
    if not isinstance(k, int):
        return False
    return k <= _FEW or (all(isinstance(size, int) for size in sizes) and math.prod(sizes) <= _PAIRS)


def _number(value: float | list[float], dtype: DataType) -> Value:
    return op.Constant(value=tensor(value, dtype=dtype))
