"""``code_stats`` and ``code_range`` on every backend.

Oracles: float64 sums with the documented error bound, and the documented rule (multiples of 2^-s, integers added)
carried out by numpy, of which every bit must be met. The s comes from ``math.frexp`` here.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqkernels import CodeStats, code_range, code_stats
from vqkernels.testing import assert_bitwise_equal, strided

OPS = ("code_stats", "code_range")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def shift_of(values: np.ndarray, addends: int) -> int:
    largest = float(np.abs(values).max(initial=0.0))
    exponent = max(math.frexp(largest)[1], -1022) if largest else -1022
    return min(min(62 - max(addends - 1, 0).bit_length(), 51) - exponent, 1000)


def truth(
    x: torch.Tensor,  # [N, G, D]
    indices: torch.Tensor,  # [N, G]
    num_codes: int,
    weight: torch.Tensor | None = None,  # [N, G]
) -> CodeStats:
    rows, codes = x.double().numpy(), indices.long().numpy()
    factor = np.ones(codes.shape) if weight is None else weight.double().numpy()
    _, groups, d = rows.shape
    count, total = np.zeros((groups, num_codes)), np.zeros((groups, num_codes, d))
    for g in range(groups):
        keep = (codes[:, g] >= 0) & np.isfinite(rows[:, g]).all(axis=1) & np.isfinite(factor[:, g])
        mass, index = factor[keep, g], codes[keep, g]
        addend = rows[keep, g] * mass[:, None]
        for values, out in ((mass, count[g]), (addend, total[g])):
            for code in np.unique(index):
                own = values[index == code]
                s = 0 if weight is None and values is mass else shift_of(own, len(values))
                out[code] = np.rint(own * 2.0**s).astype(np.int64).sum(axis=0) * 2.0**-s
    sums = torch.from_numpy(total)
    return CodeStats(torch.from_numpy(count).float(), sums if x.dtype == torch.float64 else sums.float())


def check(x: torch.Tensor, indices: torch.Tensor, num_codes: int, weight: torch.Tensor | None, backend: str) -> None:
    expected = truth(x, indices, num_codes, weight)
    for threads in (1, 2, 3) if backend == "cpu" else (1,):
        torch.set_num_threads(threads)
        result = code_stats(x, indices, num_codes, groups=x.shape[1], weight=weight, backend=backend)
        for actual, wanted in zip(result, expected, strict=True):
            assert_bitwise_equal(actual, wanted)


def assignment(n: int, g: int, num_codes: int) -> torch.Tensor:
    return torch.randint(-1, num_codes, (n, g))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "g", "k", "d"),
    [(0, 1, 3, 2), (1, 1, 1, 1), (7, 3, 1, 5), (1000, 1, 17, 33), (900, 4, 300, 8), (500, 2, 5000, 3)],
)
def test_every_bit_follows_the_rule(
    n: int, g: int, k: int, d: int, dtype: torch.dtype, weighted: bool, backend: str
) -> None:
    # magnitudes from 1e-3 to 1e3, so that another order of summation would round differently
    x = (torch.randn(n, g, d) * 10.0 ** torch.empty(n, 1, 1).uniform_(-3, 3)).to(dtype)
    weight = torch.rand(n, g) if weighted else None
    check(x, assignment(n, g, k), k, weight, backend)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_error_of_a_sum(dtype: torch.dtype, deterministic: bool, backend: str) -> None:
    n, k, d = 700, 9, 5
    x = (torch.randn(n, d) * 10.0 ** torch.empty(n, 1).uniform_(-3, 3)).to(dtype)
    indices = torch.randint(0, k, (n,))
    result = code_stats(x, indices, k, deterministic=deterministic, backend=backend)
    hits, size = torch.zeros(k), torch.zeros(k, d, dtype=torch.float64)
    exact = torch.zeros(k, d, dtype=torch.float64)
    hits.index_add_(0, indices, torch.ones(n))
    exact.index_add_(0, indices, x.double())
    size.index_add_(0, indices, x.double().abs())
    assert_bitwise_equal(result.count, hits)
    roundoff = torch.finfo(dtype).eps / 2
    budget = roundoff * exact.abs() + n * 2.0**-53 * size  # the final rounding, and the sums of this test
    if deterministic:
        shifts = [shift_of(x[indices == code].double().numpy(), n) for code in range(k)]
        budget += hits[:, None] * 2.0 ** -(torch.tensor(shifts)[:, None] + 1.0)
    else:
        # running sums of whole blocks are added and taken off again, each time rounded
        budget += 4 * n * roundoff * float(x.double().abs().sum(0).max())
    assert bool(((result.total - exact).abs() <= budget).all())


@settings(max_examples=20)
@given(order=st.permutations(range(40)), cuts=st.lists(st.integers(0, 40), max_size=3))
def test_order_and_batches_do_not_matter(backend: str, order: list[int], cuts: list[int]) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 2, 3, generator=generator) * 10.0 ** torch.linspace(-5, 5, 40)[:, None, None]
    x[7, 1, 2] = torch.nan
    indices = torch.randint(-1, 4, (40, 2), generator=generator)
    sums = partial(code_stats, num_codes=4, groups=2, backend=backend)
    expected = sums(x, indices)
    for actual, wanted in zip(sums(x[order], indices[order]), expected, strict=True):
        assert_bitwise_equal(actual, wanted)

    within = code_range(x, indices, 4, groups=2, backend=backend)
    bounds = [0, *sorted(cuts), 40]
    parts = [order[start:end] for start, end in pairwise(bounds)]
    ranges = torch.stack([code_range(x[part], indices[part], 4, groups=2, backend=backend) for part in parts])
    assert_bitwise_equal(torch.cat([ranges[..., :2].amax(0), ranges[..., 2:].sum(0)], dim=-1), within)
    batches = [sums(x[part], indices[part], within=within) for part in parts]
    joined = CodeStats(*(torch.stack(each).sum(0) for each in zip(*batches, strict=True)))
    for actual, wanted in zip(joined.rounded(within), expected, strict=True):
        assert_bitwise_equal(actual, wanted)


@settings(max_examples=30)
@given(
    n=st.integers(1, 60),
    k=st.integers(1, 6),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    weighted=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_a_code_has_the_digits_of_its_own_vectors(
    backend: str, n: int, k: int, dtype: torch.dtype, weighted: bool, seed: int
) -> None:
    """Oracle: exact sums of fractions. Vectors of 2^-40 stand beside those of 2^62, weights too."""
    torch.manual_seed(seed)
    x = (torch.randn(n, 2).double() * 2.0 ** torch.randint(-40, 63, (n, 1))).to(dtype)
    weight = torch.rand(n).double() * 2.0 ** torch.randint(-40, 56, (n,)) if weighted else None
    indices = torch.randint(k, (n,))
    result = code_stats(x, indices, k, weight=weight, backend=backend)
    for code in range(k):
        own = (indices == code).nonzero()[:, 0].tolist()
        mass = [1 if weight is None else Fraction(float(weight[i])) for i in own]
        counted = sum(mass, start=Fraction(0))
        # each addend is off by half a unit of its last place, or in float64 by its rounding; then come two roundings
        assert abs(Fraction(float(result.count[code])) - counted) <= Fraction(
            len(own), 1 << 50
        ) * counted + counted / (1 << 23)
        for d in range(2):
            addends = [Fraction(float(x[i, d])) * m for i, m in zip(own, mass, strict=True)]
            exact = sum(addends, start=Fraction(0))
            largest = max(
                (abs(float(x[i, e]) * m) for i, m in zip(own, mass, strict=True) for e in range(2)), default=0
            )
            slack = Fraction(1, 1 << (50 if dtype == torch.float64 else 23)) * abs(exact)
            error = abs(Fraction(float(result.total[code, d])) - exact)
            assert error <= Fraction(len(own) + 1, 1 << 48) * Fraction(largest) + slack


@pytest.mark.parametrize("huge", [1e13, 1e14, 2.0**62])
def test_a_huge_vector_costs_other_codes_nothing(huge: float, backend: str) -> None:
    """Oracle: the sums without it, of as many vectors."""
    x, indices = torch.randn(300, 4), torch.randint(5, (300,))
    spoiled = x.clone()
    spoiled[7] *= huge
    indices[7] = 5
    got, want = (code_stats(rows, indices, 6, backend=backend) for rows in (spoiled, x))
    assert_bitwise_equal(got.count, want.count)
    assert_bitwise_equal(got.total[:5], want.total[:5])
    assert_bitwise_equal(got.total[5], spoiled[7])


def test_the_oracle_sees_a_wrong_grid() -> None:
    x = torch.tensor([1e8, 1.0, -1e8, 1e-9]).reshape(4, 1, 1)
    zero = torch.zeros(4, 1, dtype=torch.int64)
    assert truth(x, zero, 1).total.item() == 1.0  # 1e-9 is below the grid of 1e8
    assert truth(x[3:], zero[3:], 1).total.item() == x[3].item()


@pytest.mark.parametrize("weighted", [False, True])
def test_range_is_the_largest_of_what_takes_part(weighted: bool, backend: str) -> None:
    x = torch.tensor([[3.0, -9.0], [1e30, 1.0], [torch.nan, 1.0], [0.0, 7.99], [torch.inf, 0.0]])
    weight = torch.tensor([0.5, 4.0, 1.0, 1.0, 1.0]) if weighted else None
    indices = torch.tensor([0, -1, 1, 1, -1])
    found = code_range(x, indices, 3, weight=weight, backend=backend)
    of_first = [3 if weighted else 4, 0 if weighted else 1]
    assert found.tolist() == [[*of_first, 2, 1], [3, 1, 2, 1], [-1022, -1022, 2, 1]]
    assert code_range(x[:0], indices[:0], 1, backend=backend).tolist() == [[-1022, -1022, 0, 0]]


def test_weighted_sums_of_batches(backend: str) -> None:
    x, indices, weight = torch.randn(30, 3), torch.randint(0, 4, (30,)), torch.rand(30)
    within = code_range(x, indices, 4, weight=weight, backend=backend)
    parts = [
        code_stats(x[part], indices[part], 4, weight=weight[part], within=within, backend=backend)
        for part in (slice(0, 11), slice(11, 30))
    ]
    joined = CodeStats(parts[0].count + parts[1].count, parts[0].total + parts[1].total)
    whole = code_stats(x, indices, 4, weight=weight, backend=backend)
    for actual, expected in zip(joined.rounded(within, weighted=True), whole, strict=True):
        assert_bitwise_equal(actual, expected)


@pytest.mark.parametrize("scale", [2.0**-1070, 2.0**-600, 2.0**900])
def test_magnitudes_at_the_ends_of_float64(scale: float, backend: str) -> None:
    x = torch.randn(20, 1, 3, dtype=torch.float64) * scale
    indices = torch.randint(0, 3, (20, 1))
    check(x, indices, 3, None, backend)
    if scale > 2.0**-1000:
        assert bool(code_stats(x[:, 0], indices[:, 0], 3, backend=backend).total.any())


@pytest.mark.slow_interpreted
def test_hot_code(backend: str) -> None:
    # float32 accumulation would stop counting at 2**24 and lose digits of the total long before
    n = 20_000
    x = torch.full((n, 1, 2), 0.1)
    indices = torch.zeros(n, 1, dtype=torch.int64)
    check(x, indices, 4, None, backend)
    weight = torch.full((n, 1), 1000.125)
    assert code_stats(x[:, 0], indices[:, 0], 4, weight=weight[:, 0], backend=backend).count[0] == n * 1000.125


def test_vectors_left_out(backend: str) -> None:
    x = torch.randn(12, 1, 3)
    weight = torch.rand(12, 1)
    indices = torch.zeros(12, 1, dtype=torch.int64)
    indices[2] = -1
    x[3, 0, 1], x[4, 0, 2], x[5, 0, 0] = torch.nan, torch.inf, -torch.inf
    weight[6], weight[7] = torch.nan, torch.inf
    check(x, indices, 2, weight, backend)
    kept = [0, 1, 8, 9, 10, 11]
    clean = code_stats(x[kept, 0], indices[kept, 0], 2, weight=weight[kept, 0], backend=backend)
    result = code_stats(x[:, 0], indices[:, 0], 2, weight=weight[:, 0], backend=backend)
    assert_bitwise_equal(result.count, clean.count)
    assert_bitwise_equal(result.total, clean.total)


def test_an_integer_weight_is_a_repetition(backend: str) -> None:
    x = torch.randint(-9, 10, (50, 4)).float()
    indices, times = torch.randint(0, 6, (50,)), torch.randint(0, 4, (50,))
    weighted = code_stats(x, indices, 6, weight=times.float(), backend=backend)
    repeated = code_stats(x.repeat_interleave(times, 0), indices.repeat_interleave(times), 6, backend=backend)
    assert_bitwise_equal(weighted.count, repeated.count)
    assert_bitwise_equal(weighted.total, repeated.total)


@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32], ids=str)
def test_flat_codebook_and_leading_dimensions(index_dtype: torch.dtype, backend: str) -> None:
    x, indices = torch.randn(2, 3, 4, 5), torch.randint(-1, 7, (2, 3, 4))
    result = code_stats(x, indices.to(index_dtype), 7, backend=backend)
    expected = truth(x.reshape(24, 1, 5), indices.reshape(24, 1), 7)
    assert_bitwise_equal(result.count, expected.count[0])
    assert_bitwise_equal(result.total, expected.total[0])


def test_strides_do_not_matter(backend: str) -> None:
    x, indices, weight = torch.randn(40, 3, 6), assignment(40, 3, 9), torch.rand(40, 3)
    check(strided(x), strided(indices), 9, strided(weight), backend)
    check(x[:1].expand(40, -1, -1), indices, 9, weight.t().contiguous().t(), backend)


def test_result_carries_no_gradient(backend: str) -> None:
    x = torch.randn(5, 2, requires_grad=True)
    result = code_stats(x, torch.zeros(5, dtype=torch.int64), 3, backend=backend)
    assert not result.count.requires_grad
    assert not result.total.requires_grad


@pytest.mark.parametrize("bad", [-2, 3, 2**31])
def test_index_out_of_range(bad: int, backend: str) -> None:
    indices = torch.zeros(100, dtype=torch.int64)
    indices[57] = bad
    for call in (code_stats, code_range):
        with pytest.raises(IndexError, match=rf"indices: expected values in \[-1, 3\), got {bad}$"):
            call(torch.zeros(100, 2), indices, 3, backend=backend)


@settings(max_examples=25)
@given(
    n=st.integers(0, 60),
    g=st.integers(1, 4),
    k=st.integers(1, 30),
    d=st.integers(1, 20),
    dtype=st.sampled_from(DTYPES),
    weight_dtype=st.none() | st.sampled_from(DTYPES),
    nonfinite=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_statistics(
    backend: str,
    n: int,
    g: int,
    k: int,
    d: int,
    dtype: torch.dtype,
    weight_dtype: torch.dtype | None,
    nonfinite: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(n, g, d).to(dtype)
    if nonfinite:
        x[torch.rand(n, g, d) < 0.05] = torch.nan
    weight = None if weight_dtype is None else torch.rand(n, g).to(weight_dtype)
    check(x, assignment(n, g, k), k, weight, backend)
