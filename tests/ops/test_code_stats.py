"""``code_stats`` on every backend.

Oracle: numpy's unbuffered ``add.at`` in float64, which adds rows one after the other, rounded once. That is the
documented order of summation, so the comparison is of bits.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqkernels import CodeStats, code_stats
from vqkernels.testing import assert_bitwise_equal, strided

OPS = ("code_stats",)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


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
        np.add.at(count[g], codes[keep, g], factor[keep, g])
        np.add.at(total[g], codes[keep, g], rows[keep, g] * factor[keep, g, None])
    sums = torch.from_numpy(total)
    return CodeStats(torch.from_numpy(count).float(), sums if x.dtype == torch.float64 else sums.float())


def check(x: torch.Tensor, indices: torch.Tensor, num_codes: int, weight: torch.Tensor | None, backend: str) -> None:
    expected = truth(x, indices, num_codes, weight)
    for threads in (1, 2, 3):
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
    [(0, 1, 3, 2), (1, 1, 1, 1), (7, 3, 1, 5), (1000, 1, 17, 33), (3000, 4, 700, 8), (500, 2, 5000, 3)],
)
def test_sums_in_row_order(n: int, g: int, k: int, d: int, dtype: torch.dtype, weighted: bool, backend: str) -> None:
    # magnitudes from 1e-3 to 1e3, so that another order of summation would round differently
    x = (torch.randn(n, g, d) * 10.0 ** torch.empty(n, 1, 1).uniform_(-3, 3)).to(dtype)
    weight = torch.rand(n, g) if weighted else None
    check(x, assignment(n, g, k), k, weight, backend)


def test_the_oracle_sees_the_order_of_summation() -> None:
    x = torch.tensor([1e16, 1.0, -1e16, 1.0], dtype=torch.float64).reshape(4, 1, 1)
    zero = torch.zeros(4, 1, dtype=torch.int64)
    assert truth(x, zero, 1).total.item() == 1.0
    assert truth(x.flip(0), zero, 1).total.item() == 0.0


def test_hot_code(backend: str) -> None:
    # float32 accumulation would stop counting at 2**24 and lose digits of the total long before
    n = 200_000
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
    with pytest.raises(IndexError, match=rf"indices: expected values in \[-1, 3\), got {bad}$"):
        code_stats(torch.zeros(100, 2), indices, 3, backend=backend)


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
