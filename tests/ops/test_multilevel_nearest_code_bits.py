"""The C++ kernels return the bits of the definition, at every instruction set and thread count.

The oracle is ``vqkernels/ops/multilevel_nearest_code/reference.py``, itself held to an independent one by
``test_multilevel_nearest_code.py``.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from multilevel import MultilevelProblem, multilevel_problem
from variants import variants

from vqkernels import NearestCode, multilevel_nearest_code
from vqkernels.testing import PROBLEMS, assert_bitwise_equal, strided, usable_backends

OP = "multilevel_nearest_code"
# sizes around every block, panel and lane count of the kernels
N = (0, 1, 5, 6, 7, 65, 383, 385, 500)
K = (1, 2, 15, 16, 17, 63, 64, 65, 513, 1000)
DIMS = ((1,), (8, 24), (3, 1, 2), (64, 192), (4,) * 8, (1, 1), (7, 33), (2, 500, 5), (16, 16, 16, 16))
WEIGHTS = ((1.0,) * 8, (0.5, 2.0, 0.0, 1e-3, 1.0, 3.0, 0.25, 7.0), (1e-40, 1.0, 1e30, 1.0, 0.0, 0.0, 1.0, 1e-9))
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

each_variant = pytest.mark.parametrize(("backend", "isa"), [v for v in variants(OP) if v[0] == "cpu"])
each_power = pytest.mark.parametrize("squared", [False, True], ids=["distance", "squared"])


def assert_same_bits(actual: NearestCode, expected: NearestCode) -> None:
    assert_bitwise_equal(actual.indices, expected.indices)
    assert_bitwise_equal(actual.distance, expected.distance)


def check(problem: MultilevelProblem, weights: tuple[float, ...], squared: bool, backend: str) -> NearestCode:
    expected = multilevel_nearest_code(*problem, weights, squared=squared, backend="reference")
    result = multilevel_nearest_code(*problem, weights, squared=squared, backend=backend)
    assert_same_bits(result, expected)
    return result


@each_variant
@pytest.mark.parametrize("n", N)
def test_sizes(n: int, backend: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair of N and K once; levels, weights, problems and dtypes turn at periods of their own."""
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    for i, (size, k) in enumerate(itertools.product(N, K)):
        if size != n:
            continue
        dims, names = DIMS[i % len(DIMS)], (PROBLEMS[i % len(PROBLEMS)], PROBLEMS[(7 * i + 3) % len(PROBLEMS)])
        problem = multilevel_problem(names, n, k, dims, dtype=DTYPES[i // 2 % len(DTYPES)])
        weights, squared = WEIGHTS[i // 3 % len(WEIGHTS)][: len(dims)], bool(i % 2)
        result = check(problem, weights, squared, backend)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert_same_bits(multilevel_nearest_code(*problem, weights, squared=squared, backend=backend), result)


@each_variant
@each_power
@pytest.mark.parametrize("name", PROBLEMS)
def test_adversarial_inputs(
    name: str, squared: bool, backend: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    for dims, dtype in itertools.product(((2, 1), (8, 24)), DTYPES[:3]):
        for names in ((name,), (name, "gaussian"), ("near-ties", name)):
            check(multilevel_problem(names, 70, 500, dims, dtype=dtype), (1.0, 0.3), squared, backend)


@each_variant
@each_power
@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-160, 1e150, 1e154, 1e200])
def test_float64_beyond_the_range_of_its_squares(
    scale: float, squared: bool, backend: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # near 1e154 some squares overflow and others do not, whatever the weight makes of them
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    (x, y), (codebook, other) = multilevel_problem(("gaussian",), 40, 100, (3, 2), dtype=torch.float64)
    for weights in ((1.0, 1.0), (1e-150, 1.0), (1e-308, 1e-308), (1e308, 1e308), (5e-324, 0.0)):
        check(MultilevelProblem([x * scale, y], [codebook * scale, other]), weights, squared, backend)
        check(MultilevelProblem([x * scale, y], [codebook, other * scale]), weights, squared, backend)


@each_variant
@each_power
def test_a_level_that_hardly_counts_decides_ties(
    squared: bool, backend: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # every code twice in the heavy level; how much the other adds is far below the rounding of float32
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    for weight in (1e-3, 1e-9, 1e-15, 1e-60):
        xs, codebooks = multilevel_problem(("duplicates", "gaussian"), 60, 300, (4, 3))
        check(MultilevelProblem(xs, codebooks), (1.0, weight), squared, backend)


@each_variant
def test_large_codebook(backend: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    check(multilevel_problem(("near-ties", "gaussian"), 5, (1 << 16) + 3, (4, 2)), (1.0, 1e-6), False, backend)


@each_variant
@each_power
def test_few_vectors_many_codes(squared: bool, backend: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads divide the codes; every code is there three times, so that equal ones lie in different shares."""
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    xs, codebooks = multilevel_problem(("gaussian", "near-ties"), 4, 7000, (100, 20))
    codebooks = [codebook.repeat(3, 1) for codebook in codebooks]
    codebooks[0][5], codebooks[1][20_001:], xs[0][1] = torch.nan, torch.inf, torch.nan
    # on codes, of which the first of three wins, and too far away for a scan
    xs = [torch.cat([x, codebook[[9000, 13_999]], 1e15 * x[:1]]) for x, codebook in zip(xs, codebooks, strict=True)]
    expected = multilevel_nearest_code(xs, codebooks, (1.0, 0.5), squared=squared, backend="reference")
    assert expected.indices[4:6].tolist() == [2000, 6999]
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        result = multilevel_nearest_code(xs, codebooks, (1.0, 0.5), squared=squared, backend=backend)
        assert_same_bits(result, expected)


@st.composite
def lookups(draw: st.DrawFn) -> tuple[MultilevelProblem, tuple[float, ...], bool]:
    """Any problems, sizes, dtypes and layouts, weights of any magnitude, and a power."""
    dims = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=8)))
    names = tuple(draw(st.lists(st.sampled_from(PROBLEMS), min_size=1, max_size=3)))
    sizes = draw(st.integers(0, 40)), draw(st.integers(1, 80))
    xs, codebooks = multilevel_problem(names, *sizes, dims, dtype=torch.float64, seed=draw(st.integers(0, 2**31)))
    dtype, layout = st.sampled_from(DTYPES), st.sampled_from((torch.clone, strided))
    problem = MultilevelProblem(*([draw(layout)(t.to(draw(dtype))) for t in ts] for ts in (xs, codebooks)))
    weights = draw(st.lists(st.floats(0, 1e300), min_size=len(dims), max_size=len(dims)).filter(any))
    return problem, tuple(weights), draw(st.booleans())


@pytest.mark.parametrize("backend", [name for name in usable_backends(OP) if name == "cpu"])
@given(lookup=lookups())
def test_any_lookup(backend: str, lookup: tuple[MultilevelProblem, tuple[float, ...], bool]) -> None:
    check(*lookup, backend)


@pytest.mark.parametrize("backend", [name for name in usable_backends(OP) if name in ("cpu", "reference")])
@given(lookup=lookups())
def test_invariants(backend: str, lookup: tuple[MultilevelProblem, tuple[float, ...], bool]) -> None:
    """Repeated codes are never used, vectors do not interact, a level of weight 0 does not matter."""
    (xs, codebooks), weights, squared = lookup

    def run(xs: list[torch.Tensor], codebooks: list[torch.Tensor], weights: tuple[float, ...]) -> NearestCode:
        return multilevel_nearest_code(xs, codebooks, weights, squared=squared, backend=backend)

    result = run(xs, codebooks, weights)
    assert_same_bits(run(xs, [torch.cat([codebook, codebook]) for codebook in codebooks], weights), result)
    backwards = run([x.flip(0) for x in xs], codebooks, weights)
    assert_same_bits(NearestCode(*(t.flip(0) for t in backwards)), result)
    if len(xs) < 8:
        silent = [torch.ones(len(xs[0]), 2)], [torch.ones(len(codebooks[0]), 2)]
        assert_same_bits(run([*silent[0], *xs], [*silent[1], *codebooks], (0.0, *weights)), result)
