"""``top_codes`` on every backend.

Oracle: the contract written out once more, in numpy: all float64 keys in canonical order, sorted by (key, index).
Results must be its indices and its distances to the bit.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from vqkernels import TopCodes, nearest_code, top_codes
from vqkernels.testing import PROBLEMS, assert_bitwise_equal, call_on, lookup_problem, strided

OPS = ("top_codes",)
METRICS = ("l2", "cosine", "dot")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
Array = np.ndarray


def all_keys(rows: Array, codes: Array, metric: str) -> Array:  # [N, D], [K, D] -> [N, K]
    """Canonical keys; infinite where a code is not usable, NaN where a row is not."""
    key = np.zeros((len(rows), len(codes)))
    row_square, code_square = np.zeros(len(rows)), np.zeros(len(codes))
    for d in range(codes.shape[1]):
        x, c = rows[:, d], codes[:, d]
        key += np.square(x[:, None] - c) if metric == "l2" else -(x[:, None] * c)
        row_square += x * x
        code_square += c * c
    usable = np.isfinite(codes).all(axis=1)
    row_usable = np.isfinite(rows).all(axis=1)
    if metric == "cosine":
        usable &= np.isfinite(code_square)
        row_usable &= np.isfinite(row_square)
        zero = (code_square == 0) | (row_square[:, None] == 0)
        key = np.where(zero, 0.0, key / np.sqrt(code_square))
    key = np.where(usable & ~np.isnan(key), key, np.inf)
    row_usable &= key.min(axis=1) > -np.inf
    return np.where(row_usable[:, None], key, np.nan)


def near_one(vectors: np.ndarray) -> np.ndarray:  # [n, D]
    """The vectors times powers of two, which a cosine does not see."""
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)
    return np.ldexp(vectors, -np.frexp(np.where(np.isfinite(largest), largest, 0.0))[1])


def truth(x: torch.Tensor, codebook: torch.Tensor, m: int, metric: str) -> TopCodes:  # [N, D], [K, D]
    """The M lowest of all keys in order."""
    rows, codes = x.double().numpy(), codebook.double().numpy()
    finite = np.isfinite(rows).all(axis=1)[:, None], np.isfinite(codes).all(axis=1)
    if metric == "cosine":
        rows, codes = near_one(rows), near_one(codes)
    with np.errstate(all="ignore"):
        key = all_keys(rows, codes, metric)
        indices = np.argsort(key, axis=1, kind="stable")[:, :m]
        key = np.take_along_axis(key, indices, axis=1)
        indices = np.where(np.isnan(key[:, :1]), 0, indices)
        distance = key
        if metric == "cosine":
            square = np.zeros(len(rows))
            for d in range(rows.shape[1]):
                square += rows[:, d] ** 2
            norm = np.sqrt(square)[:, None]
            distance = np.where(norm > 0, np.maximum(1.0 + key / norm, 0.0), 1.0)
        beyond = np.where((metric == "l2") & finite[0] & finite[1][indices], np.inf, np.nan)
        distance = np.where(np.isfinite(key), distance, beyond).astype(np.float32)
    return TopCodes(torch.from_numpy(indices), torch.from_numpy(distance))


def assert_same_bits(actual: TopCodes, expected: TopCodes) -> None:
    assert_bitwise_equal(actual.indices, expected.indices)
    assert_bitwise_equal(actual.distance, expected.distance)


def look_up(x: torch.Tensor, codebook: torch.Tensor, m: int, backend: str, *, metric: str = "l2") -> TopCodes:
    result: TopCodes = call_on(backend, partial(top_codes, m=m, metric=metric), x, codebook)
    return result


def check(x: torch.Tensor, codebook: torch.Tensor, m: int, metric: str, backend: str) -> TopCodes:
    result = look_up(x, codebook, m, backend, metric=metric)
    assert_same_bits(result, truth(x, codebook, m, metric))
    return result


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adversarial_inputs(problem: str, metric: str, dtype: torch.dtype, backend: str) -> None:
    interpreted = [(6, 130, 3, 20)]
    sizes = [(30, 130, 1, 9), (20, 130, 5, 130), (9, 1700, 17, 40)]
    for n, k, d, m in interpreted if backend == "triton" else sizes:
        check(*lookup_problem(problem, n, k, d, dtype=dtype), m, metric, backend)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_first_is_the_nearest_code(problem: str, metric: str, backend: str) -> None:
    for m, dtype in ((1, torch.float32), (1, torch.float64), (7, torch.float16)):
        x, codebook = lookup_problem(problem, 10, 150, 3, groups=2, dtype=dtype)
        first = look_up(x, codebook, m, backend, metric=metric)
        nearest = nearest_code(x, codebook, metric=metric, backend="reference")
        assert_bitwise_equal(first.indices[..., 0], nearest.indices)
        assert_bitwise_equal(first.distance[..., 0], nearest.distance)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("codebook_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("x_dtype", DTYPES, ids=str)
def test_dtypes_mix(x_dtype: torch.dtype, codebook_dtype: torch.dtype, metric: str, backend: str) -> None:
    x, codebook = lookup_problem("near-ties", 20, 200, 9, dtype=torch.float64)
    check(x.to(x_dtype), codebook.to(codebook_dtype), 12, metric, backend)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e-160, 1e150, 1e200])
def test_float64_beyond_the_range_of_its_squares(scale: float, metric: str, backend: str) -> None:
    x, codebook = lookup_problem("gaussian", 20, 100, 6, dtype=torch.float64)
    for vectors, codes in ((x * scale, codebook), (x, codebook * scale), (x * scale, codebook * scale)):
        check(vectors, codes, 60, metric, backend)


@pytest.mark.parametrize("groups", [1, 2, 16])
def test_each_group_has_its_own_codebook(groups: int, backend: str) -> None:
    x, codebook = lookup_problem("duplicates", 21, 40, 6, groups=groups)
    result = look_up(x, codebook, 5, backend)
    assert result.indices.shape == result.distance.shape == (21, groups, 5)
    for group in range(groups):
        expected = truth(x[:, group], codebook[group], 5, "l2")
        assert_same_bits(TopCodes(*(t[:, group].contiguous() for t in result)), expected)


@pytest.mark.parametrize("m", [1, 2, 1000, 1024])
def test_large_codebook(m: int, backend: str) -> None:
    check(*lookup_problem("gaussian", 3, 9001 if backend == "triton" else 70001, 2), m, "l2", backend)


def test_ties_across_every_block_of_codes(backend: str) -> None:
    x, codebook = lookup_problem("gaussian", 7, 8, 2)
    indices = look_up(x, codebook.repeat(1000, 1), 1000, backend).indices
    nearest = nearest_code(x, codebook, backend="reference").indices
    # the nearest code a thousand times, in order
    assert torch.equal(indices, nearest[:, None] + 8 * torch.arange(1000))


def test_codes_that_are_not_finite_come_last_in_order(backend: str) -> None:
    codebook = torch.tensor([[torch.inf], [2.0], [torch.nan], [1.0], [-torch.inf]])
    indices, distance = look_up(torch.zeros(1, 1), codebook, 5, backend)
    assert indices.tolist() == [[3, 1, 0, 2, 4]]
    assert_bitwise_equal(distance, torch.tensor([[1.0, 4.0, torch.nan, torch.nan, torch.nan]]))


def test_a_vector_that_is_not_finite_has_no_nearest_codes(backend: str) -> None:
    x = torch.tensor([[torch.nan, 0.0], [1.0, -torch.inf], [0.0, 0.0]])
    for metric in METRICS:
        indices, distance = look_up(x, torch.eye(2), 2, backend, metric=metric)
        assert indices.tolist() == [[0, 0], [0, 0], [0, 1]]
        assert distance.isnan().tolist() == [[True, True], [True, True], [False, False]]


@pytest.mark.parametrize("lead", [(), (1,), (0,), (3, 0), (2, 3), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("groups", [None, 3])
def test_leading_dimensions_are_kept(lead: tuple[int, ...], groups: int | None, backend: str) -> None:
    count = torch.Size(lead).numel()
    x, codebook = lookup_problem("gaussian", count, 20, 5, groups=groups)
    result = look_up(x.reshape(*lead, *x.shape[1:]), codebook, 4, backend)
    flat = look_up(x, codebook, 4, backend)
    assert result.indices.shape == result.distance.shape == (*lead, *x.shape[1:-1], 4)
    assert_same_bits(TopCodes(*(t.reshape(flat.indices.shape) for t in result)), flat)


@pytest.mark.parametrize("metric", METRICS)
def test_strides_do_not_matter(metric: str, backend: str) -> None:
    x, codebook = lookup_problem("gaussian", 12, 40, 7)
    for rows in (strided(x), x.t().contiguous().t(), x[:1].expand(12, -1)):
        check(rows, strided(codebook), 6, metric, backend)


def test_inputs_are_left_alone_and_outputs_carry_no_gradient(backend: str) -> None:
    x, codebook = (t.requires_grad_() for t in lookup_problem("gaussian", 40, 20, 8))
    before = x.detach().clone(), codebook.detach().clone()
    result = look_up(x, codebook, 3, backend)
    assert not any(t.requires_grad for t in result)
    assert_bitwise_equal(x, before[0])
    assert_bitwise_equal(codebook, before[1])
