"""The C++ kernels of ``top_codes`` return the bits of the definition, at every instruction set and thread count.

The oracle is ``vqkernels/ops/top_codes/reference.py``, itself held to an independent one by ``test_top_codes.py``.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from variants import variants

from vqkernels import TopCodes, top_codes
from vqkernels.testing import PROBLEMS, LookupProblem, assert_bitwise_equal, lookup_problem, strided, usable_backends

METRICS = ("l2", "cosine", "dot")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# sizes around every block, tile and list of the kernels
N = (0, 1, 5, 6, 7, 61)
K = (1, 15, 16, 17, 64, 65, 511, 513, 2000)
M = (1, 2, 16, 17, 100, 511, 1024)
D = (1, 2, 3, 8, 17, 64, 300)

each_variant = pytest.mark.parametrize(
    ("backend", "isa"), [variant for variant in variants("top_codes") if variant[0] == "cpu"]
)


@pytest.fixture(autouse=True)
def _isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "isa" in request.fixturenames:
        monkeypatch.setenv("VQKERNELS_ISA", request.getfixturevalue("isa"))


def check(x: torch.Tensor, codebook: torch.Tensor, m: int, metric: str, backend: str) -> None:
    actual = top_codes(x, codebook, m, metric=metric, backend=backend)
    expected = top_codes(x, codebook, m, metric=metric, backend="reference")
    assert_bitwise_equal(actual.indices, expected.indices)
    assert_bitwise_equal(actual.distance, expected.distance)


@each_variant
@pytest.mark.parametrize("n", N)
def test_sizes(n: int, backend: str, isa: str) -> None:
    for i, (k, m) in enumerate(itertools.product(K, M)):
        if m > k:
            continue
        torch.set_num_threads(1 + i % 3)
        problem, metric, dtype = PROBLEMS[i % len(PROBLEMS)], METRICS[i % 3], DTYPES[i // 2 % 4]
        x, codebook = lookup_problem(problem, n, k, D[i % len(D)], dtype=dtype)
        check(x, codebook, m, metric, backend)


@each_variant
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_adversarial_inputs(problem: str, metric: str, backend: str, isa: str) -> None:
    for (n, k, d, m), dtype in itertools.product(((40, 600, 3, 25), (7, 3100, 12, 3)), DTYPES[:3]):
        check(*lookup_problem(problem, n, k, d, groups=2, dtype=dtype), m, metric, backend)


@each_variant
@pytest.mark.parametrize("m", [1, 30, 1000])
def test_a_sample_of_the_codes_misleads(m: int, backend: str, isa: str) -> None:
    """One block in sixteen holds all the near codes, or all the far ones, whatever the size of a block."""
    for block, near in itertools.product((8, 16, 64), (0.01, 100.0)):
        x, codebook = torch.randn(9, 4), torch.randn(24_000, 4)
        codebook[torch.arange(24_000) // block % 16 == 0] *= near
        check(x, codebook, m, "l2", backend)


@each_variant
@pytest.mark.parametrize("sorting", ["ascending", "descending"])
def test_codes_in_the_order_of_their_distance(sorting: str, backend: str, isa: str) -> None:
    x, codebook = torch.randn(9, 4), torch.randn(20_000, 4)
    order = (codebook - x[0]).norm(dim=1).argsort(descending=sorting == "descending")
    check(x, codebook[order], 40, "l2", backend)


@each_variant
def test_more_equal_codes_than_any_list_holds(backend: str, isa: str) -> None:
    x, codebook = torch.randn(9, 4), torch.randn(20_000, 4)
    codebook[3000:15_000] = x[0]
    codebook[5000] += 1e-7  # lists of float32 scores cannot see it
    for m in (1, 50, 1024):
        check(x, codebook, m, "l2", backend)


@each_variant
def test_thread_count_changes_nothing(backend: str, isa: str) -> None:
    x, codebook = lookup_problem("near-ties", 300, 3000, 6)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(top_codes(x, codebook, 33, backend=backend))
    for other in results[1:]:
        assert_bitwise_equal(other.indices, results[0].indices)
        assert_bitwise_equal(other.distance, results[0].distance)


@each_variant
@pytest.mark.parametrize("metric", METRICS)
def test_few_vectors_many_codes(metric: str, backend: str, isa: str) -> None:
    """Threads divide the codes; every code is there three times, so that equal ones lie in different shares."""
    x, codebook = lookup_problem("gaussian", 3, 7000, 200)
    codebook = codebook.repeat(3, 1)
    codebook[17], codebook[20_001:] = torch.nan, torch.inf
    x[1] = torch.nan
    x = torch.cat([x, torch.zeros(1, 200), 1e-3 * codebook[6999:7000]])
    expected = top_codes(x, codebook, 40, metric=metric, backend="reference")
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        result = top_codes(x, codebook, 40, metric=metric, backend=backend)
        assert_bitwise_equal(result.indices, expected.indices)
        assert_bitwise_equal(result.distance, expected.distance)


@st.composite
def lookups(draw: st.DrawFn) -> tuple[LookupProblem, int, str]:
    """Any problem, size, grouping, dtype pair and layout, with M and a metric."""
    sizes = (draw(st.integers(0, 20)), draw(st.integers(1, 80)), draw(st.integers(1, 30)))
    problem = lookup_problem(
        draw(st.sampled_from(PROBLEMS)),
        *sizes,
        groups=draw(st.none() | st.integers(1, 4)),
        seed=draw(st.integers(0, 2**31)),
        dtype=draw(st.sampled_from(DTYPES)),
    )
    codebook = problem.codebook.to(draw(st.sampled_from((problem.x.dtype, *DTYPES))))
    layout = st.sampled_from((torch.clone, strided))
    inputs = LookupProblem(draw(layout)(problem.x), draw(layout)(codebook))
    return inputs, draw(st.integers(1, sizes[1])), draw(st.sampled_from(METRICS))


@pytest.mark.parametrize("backend", [b for b in usable_backends("top_codes") if b == "cpu"])
@given(lookup=lookups())
def test_any_lookup(backend: str, lookup: tuple[LookupProblem, int, str]) -> None:
    (x, codebook), m, metric = lookup
    check(x, codebook, m, metric, backend)


@pytest.mark.parametrize("backend", [b for b in usable_backends("top_codes") if b != "triton"])
@given(lookup=lookups())
def test_invariants(backend: str, lookup: tuple[LookupProblem, int, str]) -> None:
    """All codes appear once at M = K, fewer are a prefix of more, and a repeated codebook repeats every code."""
    (x, codebook), m, metric = lookup
    k = codebook.shape[-2]
    everything = top_codes(x, codebook, k, metric=metric, backend=backend)
    fewer = top_codes(x, codebook, m, metric=metric, backend=backend)
    assert_bitwise_equal(fewer.indices, everything.indices[..., :m])
    assert_bitwise_equal(fewer.distance, everything.distance[..., :m])
    ranked = everything.distance.isfinite().any(dim=-1)
    assert bool((everything.indices[ranked].sort(dim=-1).values == torch.arange(k)).all())
    twice = top_codes(x, torch.cat([codebook, codebook], dim=-2), 2 * m, metric=metric, backend=backend)
    finite = fewer.distance.isfinite()
    pairs = TopCodes(*(t.unflatten(-1, (m, 2)) for t in twice))
    assert_bitwise_equal(pairs.distance[..., 0][finite], fewer.distance[finite])
    assert_bitwise_equal(pairs.distance[..., 1][finite], fewer.distance[finite])
