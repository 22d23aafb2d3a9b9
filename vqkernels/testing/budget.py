"""Assertions whose tolerances are computed from the data; the only numbers are unit roundoffs and counts.

``gamma(m) = m u / (1 - m u)`` bounds the relative error of m rounded operations in a row (Higham, Accuracy
and Stability of Numerical Algorithms, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

_PAIRS_TIMES_D = 1 << 22  # elements of one temporary
_U64 = 2.0**-53
_U32 = 2.0**-24
_HALF_SUBNORMAL32 = 2.0**-150
_EXACT64 = 2.0**53  # integers below are exact in float64
_INT_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def assert_exact_lookup(
    x: torch.Tensor,  # [..., D] or [..., G, D]
    codebook: torch.Tensor,  # [K, D] or [G, K, D]
    indices: torch.Tensor,  # [...] or [..., G]
    distance: torch.Tensor,  # [...] or [..., G]
    metric: str = "l2",
) -> None:
    """Assert that a lookup returned the nearest codes, up to float64 rounding and nothing else.

    The truth is the direct form evaluated in float64, in chunks. Accepted is an index that some float64
    evaluation, in whatever order of summation, could find nearest. Where every product and sum is an exact
    integer, that is one index. Of equal codes only the first is accepted. A vector with a non-finite entry,
    and every vector if no code is finite, must have index 0 and distance NaN; else a non-finite code must not
    be chosen. The distance must be the float32 rounding of the chosen code's.

    Args:
        x: vectors as given to the lookup, any floating point dtype.
        codebook: codes as given to the lookup.
        indices: returned indices, int64.
        distance: returned distances, float32.
        metric: ``"l2"``, ``"cosine"`` or ``"dot"``, as in :func:`vqkernels.nearest_code`.

    Raises:
        AssertionError: naming the first offending vector, what was chosen and what was nearest.

    Example:
        >>> import torch
        >>> from vqkernels.testing import assert_exact_lookup
        >>> x, codebook = torch.tensor([[0.4]]), torch.tensor([[0.0], [1.0]])
        >>> assert_exact_lookup(x, codebook, torch.tensor([0]), torch.tensor([0.16]))
    """
    grouped = codebook if codebook.dim() == 3 else codebook[None]
    g, k, d = grouped.shape
    for name, tensor, dtype in (("indices", indices, torch.int64), ("distance", distance, torch.float32)):
        _require_shape(name, tensor, x.shape[:-1])
        _require(tensor.dtype == dtype, f"{name}: expected {dtype}, got {tensor.dtype}")
    low, high = (int(indices.min()), int(indices.max())) if indices.numel() else (0, 0)
    _require(low >= 0 and high < k, f"indices: expected values in [0, {k}), got {low} to {high}")
    rows = x.detach().reshape(-1, g, d).double()
    chosen, given = indices.reshape(-1, g), distance.reshape(-1, g).double()
    chunk = max(1, _PAIRS_TIMES_D // (k * d))
    for group in range(g):
        codes = grouped[group].detach().double()
        first = _first_equal(codes)
        for start in range(0, rows.shape[0], chunk):
            part = (slice(start, start + chunk), group)
            where = f"metric {metric}, group {group}, vector {start} + "
            _check_rows(rows[part], codes, first, chosen[part], given[part], metric, where)


def _check_rows(
    rows: torch.Tensor,  # [n, D] float64
    codes: torch.Tensor,  # [K, D] float64
    first: torch.Tensor,  # [K] index of the first code equal to each
    chosen: torch.Tensor,  # [n]
    given: torch.Tensor,  # [n] float64
    metric: str,
    where: str,
) -> None:
    truth, error = _distances(rows, codes, metric)
    usable_code = codes.isfinite().all(dim=1)
    truth = torch.where(usable_code, truth, torch.inf)
    error = torch.where(usable_code, error, 0.0)
    lost = ~rows.isfinite().all(dim=1) | ~usable_code.any()
    _require_all(~lost | ((chosen == 0) & given.isnan()), where, "nothing is nearest: expected 0 and NaN")

    # an evaluation errs by `error` in one direction, ours by as much in the other
    value, slack = (t.gather(1, chosen[:, None])[:, 0] for t in (truth, 2 * error))
    bound = (truth + 2 * error).min(dim=1).values
    nearest = truth.argmin(dim=1)

    def tell(n: int) -> str:
        best = int(nearest[n])
        return f"chose {int(chosen[n])} at {value[n].item()!r}, but {best} is at {truth[n, best].item()!r}"

    _require_all(lost | (value - slack <= bound), where, "not the nearest code", tell)
    if metric != "cosine" and _exact(rows, codes):
        _require_all(lost | (chosen == nearest), where, "exact tie not resolved to the lowest index", tell)
    _require_all(lost | (first[chosen] == chosen), where, "an equal code has a lower index", tell)

    rounding = _U32 * value.abs() + 2 * slack + _HALF_SUBNORMAL32
    _require_all(
        lost | (given == value.float()) | ((given - value).abs() <= rounding),
        where,
        "distance is not the rounded truth",
        lambda n: f"got {given[n].item()!r}, truth {value[n].item()!r}",
    )


def _distances(rows: torch.Tensor, codes: torch.Tensor, metric: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Float64 distances ``[n, K]`` and a bound on the error of any float64 evaluation of them."""
    d = rows.shape[1]
    a, b = rows[:, None], codes[None]
    if metric == "l2":
        value = (a - b).square().sum(dim=2)
        return value, value * _gamma(d + 2)
    products = a * b
    dot, size = products.sum(dim=2), products.abs().sum(dim=2)
    if metric == "dot":
        return -dot, size * _gamma(d)
    norms = rows.square().sum(dim=1).sqrt()[:, None] * codes.square().sum(dim=1).sqrt()
    cosine = torch.where(norms > 0, dot / norms, 0.0)
    # a dot product over the product of two norms, and the subtraction from 1; a zero vector is exactly at 1
    return 1.0 - cosine, torch.where(norms > 0, _gamma(2 * d + 8), 0.0)


def _gamma(operations: int) -> float:
    return operations * _U64 / (1 - operations * _U64)


def _exact(rows: torch.Tensor, codes: torch.Tensor) -> bool:
    """Whether squared distances and dot products are sums of integers that float64 holds exactly."""
    finite = torch.cat([t[t.isfinite()] for t in (rows, codes)])
    if not finite.numel() or not bool((finite == finite.round()).all()):
        return False
    return rows.shape[1] * (2 * float(finite.abs().max())) ** 2 < _EXACT64


def _first_equal(codes: torch.Tensor) -> torch.Tensor:  # [K, D] -> [K]
    """For each code the lowest index of a code with the same values (-0 equals 0)."""
    values, inverse = torch.unique(codes + 0.0, dim=0, return_inverse=True)
    index = torch.arange(codes.shape[0])
    lowest = torch.full((values.shape[0],), codes.shape[0]).scatter_reduce(0, inverse, index, "amin")
    return lowest[inverse]


def assert_within_budget(
    actual: torch.Tensor,
    truth: torch.Tensor,
    low_precision_reference: torch.Tensor,
    *,
    factor: float = 2.0,
) -> None:
    """Assert that a result is as accurate as plain code in the same dtype.

    The budget of an element is ``factor * (error + band)``: ``error`` the largest error of the reference,
    ``band`` one unit roundoff of the dtype of ``actual`` times that element's true magnitude. A non-finite
    truth must be met exactly.

    Args:
        actual: result under test.
        truth: the result in float64, same shape.
        low_precision_reference: the result of straightforward code in the working dtype, same shape.
        factor: how many times the reference's error is allowed.

    Raises:
        AssertionError: naming the first element outside, and its budget.

    Example:
        >>> import torch
        >>> from vqkernels.testing import assert_within_budget
        >>> x = torch.full((1000,), 0.1)
        >>> assert_within_budget(x.sum(), x.double().sum(), x.cumsum(0)[-1])
    """
    for name, tensor in (("actual", actual), ("low_precision_reference", low_precision_reference)):
        _require_shape(name, tensor, truth.shape)
    _require(truth.dtype == torch.float64, f"truth: expected float64, got {truth.dtype}")
    band = torch.finfo(actual.dtype).eps / 2
    got, want, reference = (t.detach().double().reshape(-1) for t in (actual, truth, low_precision_reference))
    finite = want.isfinite()
    same = (got == want) | (got.isnan() & want.isnan())
    _require_all(finite | same, "element ", "non-finite truth", lambda n: f"got {got[n]}, truth {want[n]}")
    error = torch.where(finite, (reference - want).abs(), 0.0)
    largest = error.max() if error.numel() else torch.tensor(0.0)
    _require(bool(largest.isfinite()), "low_precision_reference: not finite where the truth is")
    budget = factor * (largest + band * want.abs())
    _require_all(
        ~finite | ((got - want).abs() <= budget),
        "element ",
        "outside the error budget",
        lambda n: f"got {got[n].item()!r}, truth {want[n].item()!r}, budget {budget[n].item():.3e}",
    )


def assert_bitwise_equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert the same shape, dtype and bits; one NaN is as good as another, but -0.0 is not 0.0.

    Args:
        actual: result under test.
        expected: what it must be.

    Raises:
        AssertionError: naming the number of different elements and the first of them.

    Example:
        >>> import torch
        >>> from vqkernels.testing import assert_bitwise_equal
        >>> assert_bitwise_equal(torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]))
    """
    _require(actual.dtype == expected.dtype, f"actual: expected {expected.dtype}, got {actual.dtype}")
    _require_shape("actual", actual, expected.shape)
    a, b = (t.detach().contiguous().reshape(-1) for t in (actual, expected))
    integer = _INT_OF_SIZE[a.element_size()]
    same = (a.view(integer) == b.view(integer)) | (a.isnan() & b.isnan())
    _require_all(
        same,
        "flat element ",
        f"{int((~same).sum())} of {same.numel()} differ",
        lambda n: f"got {a[n].item()!r}, expected {b[n].item()!r}",
    )


def _require(condition: bool, message: str) -> None:
    # raised by hand: these must hold under python -O too
    if not condition:
        raise AssertionError(message)


def _require_shape(name: str, tensor: torch.Tensor, expected: torch.Size) -> None:
    _require(tensor.shape == expected, f"{name}: expected shape {list(expected)}, got {list(tensor.shape)}")


def _require_all(
    good: torch.Tensor,  # [n] bool
    where: str,
    message: str,
    tell: Callable[[int], str] = lambda n: "",
) -> None:
    if not bool(good.all()):
        n = int((~good).nonzero()[0])
        raise AssertionError(f"{where}{n}: {message}; {tell(n)}")
