"""Every backend returns the bits of the definition, at every instruction set and thread count.

The oracle is ``vqkernels/ops/nearest_code/reference.py``, itself held to an independent one by
``test_nearest_code.py``. A variant is a backend with, for the C++ kernels, an instruction set.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from variants import ISA_FLAGS, processor_isas, variants

from vqkernels import NearestCode, nearest_code
from vqkernels.testing import (
    PROBLEMS,
    LookupProblem,
    assert_bitwise_equal,
    call_on,
    interpreted,
    lookup_problem,
    strided,
    usable_backends,
)

# sizes around every block, panel and lane count of the kernels
N = (0, 1, 2, 5, 6, 7, 63, 64, 65, 191, 192, 193, 500)
K = (1, 2, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1000)
D = (1, 2, 3, 4, 7, 8, 9, 16, 31, 32, 33, 64, 65, 256, 1024)
METRICS = ("l2", "cosine", "dot")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
THREADS = (1, 2, 3, 7)

each_variant = pytest.mark.parametrize(("backend", "isa"), variants("nearest_code"))
each_cpu_variant = pytest.mark.parametrize(
    "isa", [isa for backend, isa in variants("nearest_code") if backend == "cpu"]
)


def look_up(x: torch.Tensor, codebook: torch.Tensor, metric: str, backend: str) -> NearestCode:
    result: NearestCode = call_on(backend, partial(nearest_code, metric=metric), x, codebook)
    return result


def thread_counts(backend: str) -> tuple[int, ...]:
    return THREADS if backend == "cpu" else THREADS[:1]


def assert_same_bits(actual: NearestCode, expected: NearestCode) -> None:
    assert_bitwise_equal(actual.indices, expected.indices)
    assert_bitwise_equal(actual.distance, expected.distance)


def covering_cases() -> list[tuple[int, int, int, str, str, tuple[torch.dtype, torch.dtype]]]:
    """Every pair of N and K once; D, metric, problem and dtypes turn at periods of their own."""
    cases = []
    dtype_pairs = list(itertools.product(DTYPES, DTYPES))
    for i, (n, k) in enumerate(itertools.product(N, K)):
        problem = PROBLEMS[i % len(PROBLEMS)]
        cases.append((n, k, D[i % 15], METRICS[i % 7 % 3], problem, dtype_pairs[i % 16]))
    return cases


@functools.cache
def solved(
    problem: str, n: int, k: int, d: int, groups: int | None, dtypes: tuple[torch.dtype, torch.dtype], metric: str
) -> tuple[torch.Tensor, torch.Tensor, NearestCode]:
    """Vectors, codes and what the definition says, once for all variants."""
    drawn = dtypes[0] if dtypes[0] == dtypes[1] else torch.float64
    x, codebook = (
        t.to(dtype)
        for t, dtype in zip(lookup_problem(problem, n, k, d, groups=groups, dtype=drawn), dtypes, strict=True)
    )
    return x, codebook, nearest_code(x, codebook, metric=metric, backend="reference")


def cases_of(n: int, slow: bool) -> list[tuple[int, int, int, str, str, tuple[torch.dtype, torch.dtype]]]:
    """Those of this N; of slow kernels every fourth that is not large in everything, the others at the next N."""
    cases = [case for case in covering_cases() if case[0] == n]
    few = [case for case in cases if math.prod(case[:3]) < 400_000]
    return few[(N.index(n) + 3) % 4 :: 4] if slow else cases


def test_covering_cases_cover() -> None:
    cases = covering_cases()
    for column, wanted in ((0, N), (1, K), (2, D), (3, METRICS), (4, PROBLEMS)):
        assert {case[column] for case in cases} == set(wanted)
        assert column == 4 or {case[column] for n in N for case in cases_of(n, slow=True)} == set(wanted)
    assert len({case[5] for case in cases}) == 16
    assert len({(case[2], case[3]) for case in cases}) == len(D) * len(METRICS)


@each_variant
@pytest.mark.parametrize("n", N)
def test_sizes(n: int, backend: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    for _, k, d, metric, problem, dtypes in cases_of(n, interpreted(backend)):
        x, codebook, expected = solved(problem, n, k, d, None, dtypes, metric)
        for threads in thread_counts(backend):
            torch.set_num_threads(threads)
            assert_same_bits(look_up(x, codebook, metric, backend), expected)


@each_variant
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_adversarial_inputs(
    problem: str, metric: str, backend: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    cases = list(itertools.product(((210, 300, 3), (37, 700, 40)), DTYPES[:3]))
    if interpreted(backend):  # slow: one case, turning with the problem and the metric
        cases = [cases[(PROBLEMS.index(problem) + 2 * METRICS.index(metric)) % len(cases)]]
    for (n, k, d), dtype in cases:
        x, codebook, expected = solved(problem, n, k, d, 2, (dtype, dtype), metric)
        assert_same_bits(look_up(x, codebook, metric, backend), expected)


@each_cpu_variant
@pytest.mark.parametrize("problem", PROBLEMS)
def test_enough_vectors_to_search_a_tree(problem: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many vectors of few dimensions the C++ kernels order the codes and skip those that are too far.

    The definition is evaluated for one vector in 20; it treats each alone.
    """
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    number = PROBLEMS.index(problem)
    metric, d = METRICS[number % 2], (4, 8, 16)[number % 3]
    x, codebook = lookup_problem(problem, 6000, 2100, d)
    expected = nearest_code(x[::20], codebook, metric=metric, backend="reference")
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(nearest_code(x, codebook, metric=metric, backend="cpu"))
    assert_same_bits(NearestCode(*(t[::20] for t in results[0])), expected)
    assert_same_bits(results[1], results[0])


@each_variant
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e150, 1e200])
def test_float64_beyond_the_range_of_its_squares(
    scale: float, metric: str, backend: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    x, codebook = lookup_problem("gaussian", 40, 100, 6, dtype=torch.float64)
    for vectors, codes in ((x * scale, codebook), (x, codebook * scale), (x * scale, codebook * scale)):
        expected = nearest_code(vectors, codes, metric=metric, backend="reference")
        assert_same_bits(look_up(vectors, codes, metric, backend), expected)


@each_variant
@pytest.mark.parametrize("scale", [1e-18, 1e-24, 1e-30])
def test_dot_products_of_vectors_whose_squares_underflow(
    scale: float, backend: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    x, codebook = lookup_problem("gaussian", 200, 700, 16)
    for vectors, codes in ((x * scale, codebook), (x, torch.cat([-x.abs().amax(0)[None], codebook * scale]))):
        expected = nearest_code(vectors, codes, metric="dot", backend="reference")
        assert_same_bits(look_up(vectors, codes, "dot", backend), expected)


@each_variant
def test_float64_cosine_of_products_that_underflow(backend: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    x, codebook = lookup_problem("gaussian", 60, 3000, 3, dtype=torch.float64)
    expected = nearest_code(x * 1e-161, codebook * 1e-160, metric="cosine", backend="reference")
    assert_same_bits(look_up(x * 1e-161, codebook * 1e-160, "cosine", backend), expected)


@each_variant
def test_float64_dot_that_overflows_on_its_way(backend: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    x = torch.full((1, 3), 1.2e154, dtype=torch.float64)
    # the second code has the lowest dot product, but float64 sums it to inf - inf
    codebook = 1e154 * torch.tensor([[0.0, 0.0, 0.0], [-1.25, -1.25, 2.9], [0.1, 0.0, 0.0]], dtype=torch.float64)
    for order in ([0, 1, 2], [2, 1, 0]):
        expected = nearest_code(x, codebook[order], metric="dot", backend="reference")
        assert expected.indices.item() == order.index(2)
        assert_same_bits(look_up(x, codebook[order], "dot", backend), expected)


@pytest.mark.slow_interpreted
@each_variant
@pytest.mark.parametrize(
    ("problem", "metric"),
    [("near-ties", "l2"), ("duplicates", "dot"), ("nonfinite", "l2"), ("zero-vectors", "cosine")],
)
def test_few_vectors_many_codes(
    problem: str, metric: str, backend: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too few vectors to share out: threads divide the codes."""
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    x, codebook = lookup_problem(problem, 5, (1 << 16) + 3, 4)
    expected = nearest_code(x, codebook, metric=metric, backend="reference")
    for threads in thread_counts(backend):
        torch.set_num_threads(threads)
        assert_same_bits(look_up(x, codebook, metric, backend), expected)


@pytest.mark.parametrize("isa", ISA_FLAGS)
def test_an_instruction_set_runs_or_is_refused(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    refused: AbstractContextManager[object] = nullcontext()
    if "cpu" not in usable_backends("nearest_code"):
        refused = pytest.raises(NotImplementedError, match="not available")
    elif isa not in processor_isas():
        refused = pytest.raises(ValueError, match=isa)
    with refused:
        assert nearest_code(torch.zeros(1, 1), torch.zeros(1, 1), backend="cpu").indices.item() == 0


@st.composite
def lookups(draw: st.DrawFn) -> tuple[LookupProblem, str]:
    """Any problem, size, grouping, dtype pair and layout, with a metric."""
    sizes = (draw(st.integers(0, 40)), draw(st.integers(1, 80)), draw(st.integers(1, 40)))
    problem = lookup_problem(
        draw(st.sampled_from(PROBLEMS)),
        *sizes,
        groups=draw(st.none() | st.integers(1, 4)),
        seed=draw(st.integers(0, 2**31)),
        dtype=draw(st.sampled_from(DTYPES)),
    )
    codebook = problem.codebook.to(draw(st.sampled_from((problem.x.dtype, *DTYPES))))
    layout = st.sampled_from((torch.clone, strided))
    return LookupProblem(draw(layout)(problem.x), draw(layout)(codebook)), draw(st.sampled_from(METRICS))


def for_all(backend: str, check: Callable[..., None], **strategies: st.SearchStrategy[Any]) -> None:
    """Run a property; an interpreted backend gets a twentieth of the examples."""
    examples = settings.default.max_examples // (20 if interpreted(backend) else 1)  # type: ignore[union-attr]
    settings(max_examples=examples)(given(**strategies)(check))()


@pytest.mark.parametrize("backend", [b for b in usable_backends("nearest_code") if b != "reference"])
def test_any_lookup(backend: str) -> None:
    def check(lookup: tuple[LookupProblem, str]) -> None:
        (x, codebook), metric = lookup
        expected = nearest_code(x, codebook, metric=metric, backend="reference")
        assert_same_bits(look_up(x, codebook, metric, backend), expected)

    for_all(backend, check, lookup=lookups())


@pytest.mark.parametrize("backend", usable_backends("nearest_code"))
def test_invariants(backend: str) -> None:
    """Repeated codes are never used, vectors do not interact, exact scaling changes nothing."""

    def check(lookup: tuple[LookupProblem, str], power: int) -> None:
        (x, codebook), metric = lookup
        found = look_up(x, codebook, metric, backend)
        twice = torch.cat([codebook, codebook], dim=-2)
        assert_same_bits(look_up(x, twice, metric, backend), found)
        backwards = look_up(x.flip(0), codebook, metric, backend)
        assert_same_bits(NearestCode(*(t.flip(0) for t in backwards)), found)
        if x.dtype == codebook.dtype == torch.float64:
            # scaling by a power of two is exact and changes no comparison
            scaled = look_up(x * 2.0**power, codebook * 2.0**power, metric, backend)
            assert torch.equal(scaled.indices, found.indices)

    for_all(backend, check, lookup=lookups(), power=st.integers(-20, 20))
