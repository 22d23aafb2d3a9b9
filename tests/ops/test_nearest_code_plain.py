"""Few vectors meet codes as they are given: the bits of the definition, wherever that is taken or given up."""

from __future__ import annotations

import pytest
import torch
from needs import needs_extension
from variants import NARROW, variants

from vqkernels import nearest_code
from vqkernels.testing import PROBLEMS, LookupProblem, assert_bitwise_equal, lookup_problem

pytestmark = needs_extension
METRICS = ("l2", "cosine", "dot")
THREADS = (1, 2, 3, 5)
# kernels of integers and tiles show those when asked for by name; they take codes as they are by default alone
each_isa = pytest.mark.parametrize(
    "isa", ["auto", *(isa for backend, isa in variants("nearest_code") if backend == "cpu" and isa not in NARROW)]
)


@pytest.fixture(autouse=True)
def _isa(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    monkeypatch.setenv("VQKERNELS_KEPT_MIB", "0")


def check(problem: LookupProblem, metric: str, threads: tuple[int, ...] = (1,)) -> None:
    expected = nearest_code(*problem, metric=metric, backend="reference")
    for count in threads:
        torch.set_num_threads(count)
        found = nearest_code(*problem, metric=metric, backend="cpu")
        assert_bitwise_equal(found.indices, expected.indices)
        assert_bitwise_equal(found.distance, expected.distance)


@each_isa
def test_sizes(isa: str) -> None:
    """Around every tile of vectors, block of codes and vector of dimensions."""
    dims = (35, 36, 39, 40, 41, 48, 63, 64, 65, 300)
    for i, k in enumerate((1, 3, 4, 5, 15, 16, 17, 63, 64, 65, 257, 1000)):
        for n in range(8):
            problem = PROBLEMS[(i + n) % len(PROBLEMS)]
            check(lookup_problem(problem, n, k, dims[(3 * i + n) % len(dims)], seed=i), METRICS[(i + n // 2) % 3])


@each_isa
@pytest.mark.parametrize("metric", METRICS)
def test_threads_divide_the_codes(metric: str, isa: str) -> None:
    x, codebook = lookup_problem("gaussian", 7, 3000, 256)
    # equal codes in different shares, and vectors that are codes, of no length and too long for a scan
    codebook = codebook.repeat(2, 1)
    x = torch.cat([x, codebook[[0, 1400, 5999]], torch.zeros(1, 256), 1e16 * x[:1]])
    x[3] = torch.nan
    check(LookupProblem(x, codebook), metric, THREADS)


@each_isa
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("unit", [1e-38, 1e-30, 2e-12, 1e-6, 1e6, 5e11, 1e13, 1e30])
def test_any_unit(unit: float, metric: str, isa: str) -> None:
    """Products of large and of small codes leave the range of floats unless they are scaled on the way."""
    x, codebook = lookup_problem("near-ties", 9, 400, 64)
    x, codebook = x * unit, codebook * unit
    # codes and vectors much shorter than the others, in numbers that are not normal any more
    codebook[7], x[2] = 1e-7 * codebook[8], 1e-9 * x[2]
    check(LookupProblem(x, codebook), metric)
    check(LookupProblem(x, codebook / unit), metric)


@each_isa
@pytest.mark.parametrize("metric", METRICS)
def test_codes_far_from_the_origin(metric: str, isa: str) -> None:
    """An offset of the codes stays in products with them, and in the error bound: up to one that is given up."""
    x, codebook = lookup_problem("gaussian", 12, 500, 64)
    for offset in (0.01, 0.1, 0.3, 1.0, 10.0, 1e3):
        check(LookupProblem(x + offset, codebook + offset), metric)
        check(LookupProblem(x, codebook + offset), metric)


@each_isa
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0])
def test_codes_that_are_none(value: float, metric: str, isa: str) -> None:
    x, codebook = lookup_problem("gaussian", 5, 130, 64)
    for code in (0, 64, 129):
        codebook[code, 13] = value
    check(LookupProblem(x, codebook), metric)
    codebook[:] = value
    check(LookupProblem(x, codebook), metric)


@each_isa
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_groups(dtype: torch.dtype, isa: str) -> None:
    x, codebook = lookup_problem("gaussian", 6, 90, 72, groups=3, dtype=dtype)
    check(LookupProblem(x, codebook), "l2", (1, 2))
    check(LookupProblem(x.float(), codebook), "dot", (1, 2))
