"""The assertions catch what they must and accept what they should.

A right answer is made wrong in one place at a time; the assertion must name it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from vqkernels.testing import (
    PROBLEMS,
    LookupProblem,
    assert_bitwise_equal,
    assert_exact_lookup,
    assert_within_budget,
    lookup_problem,
)

METRICS = ("l2", "cosine", "dot")
Answer = tuple[torch.Tensor, torch.Tensor]


def brute_force(problem: LookupProblem, metric: str) -> Answer:
    """A lookup written for clarity: one vector at a time, for flat finite codebooks."""
    indices, distances = [], []
    codes = problem.codebook.double()
    for row in problem.x.double():
        if metric == "l2":
            values = [(row - code).square().sum().item() for code in codes]
        elif metric == "dot":
            values = [-(row * code).sum().item() for code in codes]
        else:
            values = [1 - torch.nn.functional.cosine_similarity(row, code, dim=0, eps=0).item() for code in codes]
        indices.append(min(range(len(values)), key=values.__getitem__))
        distances.append(values[indices[-1]])
    return torch.tensor(indices), torch.tensor(distances).float()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["gaussian", "clustered", "near-ties", "offset-1e4", "scale-1e18", "outlier-code"])
def test_a_right_lookup_passes(name: str, metric: str) -> None:
    problem = lookup_problem(name, 12, 30, 5)
    assert_exact_lookup(*problem, *brute_force(problem, metric), metric)


@pytest.mark.parametrize("metric", METRICS)
def test_the_second_nearest_code_is_caught(metric: str) -> None:
    problem = lookup_problem("gaussian", 20, 30, 5)
    indices, distance = brute_force(problem, metric)
    keep = torch.arange(30) != indices[13]
    second, _ = brute_force(LookupProblem(problem.x[13:14], problem.codebook[keep]), metric)
    indices[13] = torch.arange(30)[keep][second[0]]
    with pytest.raises(AssertionError, match=rf"metric {metric}, group 0, vector 0 \+ 13: not the nearest code"):
        assert_exact_lookup(*problem, indices, distance, metric)


def test_a_code_farther_by_one_float32_ulp_is_caught() -> None:
    x = torch.tensor([[0.0, 0.0]])
    near = 1.0
    far = torch.nextafter(torch.tensor(near), torch.tensor(2.0)).item()
    codebook = torch.tensor([[0.0, far], [near, 0.0]])
    assert_exact_lookup(x, codebook, torch.tensor([1]), torch.tensor([1.0]))
    with pytest.raises(AssertionError, match="not the nearest code"):
        assert_exact_lookup(x, codebook, torch.tensor([0]), torch.tensor([far * far]))


def test_the_expanded_formula_in_float32_is_caught() -> None:
    x, codebook = lookup_problem("offset-100-sigma", 500, 2000, 8)
    expanded = x.square().sum(1, keepdim=True) - 2 * x @ codebook.T + codebook.square().sum(1)
    value, indices = expanded.min(1)
    with pytest.raises(AssertionError, match="not the nearest code"):
        assert_exact_lookup(x, codebook, indices, value)


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_an_exact_tie_must_go_to_the_lowest_index(metric: str) -> None:
    x = torch.zeros(1, 2)
    codebook = torch.tensor([[5.0, 5.0], [0.0, 1.0], [1.0, 0.0]])
    first = 0 if metric == "dot" else 1
    distance = torch.tensor([0.0 if metric == "dot" else 1.0])
    assert_exact_lookup(x, codebook, torch.tensor([first]), distance, metric)
    with pytest.raises(AssertionError, match="lowest index"):
        assert_exact_lookup(x, codebook, torch.tensor([2]), distance, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_a_later_duplicate_is_caught(metric: str) -> None:
    problem = lookup_problem("gaussian", 8, 10, 3)
    indices, distance = brute_force(problem, metric)
    twice = problem.codebook.repeat(2, 1)
    twice[10:][twice[10:] == 0] = -0.0
    assert_exact_lookup(problem.x, twice, indices, distance, metric)
    indices[4] += 10
    with pytest.raises(AssertionError, match="an equal code has a lower index"):
        assert_exact_lookup(problem.x, twice, indices, distance, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("ulps", [-2, 2])
def test_a_distance_two_ulps_off_is_caught(ulps: int, metric: str) -> None:
    problem = lookup_problem("gaussian", 8, 10, 3)
    indices, distance = brute_force(problem, metric)
    distance.view(torch.int32)[3] += ulps
    with pytest.raises(AssertionError, match=r"\+ 3: distance is not the rounded truth"):
        assert_exact_lookup(*problem, indices, distance, metric)


def test_distances_beyond_float32_are_infinite_and_below_are_subnormal() -> None:
    codebook = torch.tensor([[0.0], [-1.0]])
    huge, small = torch.tensor([[1e30]]), torch.tensor([[1e-21]])
    assert_exact_lookup(huge, codebook, torch.tensor([0]), torch.tensor([torch.inf]))
    assert_exact_lookup(small, codebook, torch.tensor([0]), torch.tensor([1e-42]))
    with pytest.raises(AssertionError, match="rounded truth"):
        assert_exact_lookup(huge, codebook, torch.tensor([0]), torch.tensor([torch.finfo(torch.float32).max]))
    with pytest.raises(AssertionError, match="rounded truth"):  # flushed to zero
        assert_exact_lookup(small, codebook, torch.tensor([0]), torch.tensor([0.0]))


def nonfinite_answer() -> tuple[LookupProblem, Answer]:
    x = torch.tensor([[torch.nan, 0.0], [1.0, 0.0], [0.0, torch.inf]])
    codebook = torch.tensor([[torch.inf, 0.0], [9.0, 0.0], [1.0, 0.5]])
    return LookupProblem(x, codebook), (torch.tensor([0, 2, 0]), torch.tensor([torch.nan, 0.25, torch.nan]))


def change(answer: Answer, row: int, index: int, distance: float) -> Answer:
    indices, distances = (t.clone() for t in answer)
    indices[row], distances[row] = index, distance
    return indices, distances


def test_nonfinite_vectors_and_codes() -> None:
    problem, answer = nonfinite_answer()
    assert_exact_lookup(*problem, *answer)
    no_code = problem._replace(codebook=torch.full((3, 2), torch.nan))
    nothing = torch.zeros(3, dtype=torch.int64), torch.full((3,), torch.nan)
    assert_exact_lookup(*no_code, *nothing)


@pytest.mark.parametrize(
    ("row", "index", "distance", "message"),
    [
        (0, 1, torch.nan, "nothing is nearest"),
        (2, 0, 0.0, "nothing is nearest"),
        (1, 0, torch.nan, "not the nearest"),
        (1, 2, torch.nan, "rounded truth"),
    ],
)
def test_a_wrong_nonfinite_answer_is_caught(row: int, index: int, distance: float, message: str) -> None:
    problem, answer = nonfinite_answer()
    with pytest.raises(AssertionError, match=message):
        assert_exact_lookup(*problem, *change(answer, row, index, distance))


@pytest.mark.parametrize("metric", METRICS)
def test_every_group_is_checked_against_its_own_codebook(metric: str) -> None:
    x, codebook = lookup_problem("gaussian", 10, 15, 4, groups=3)
    answers = [brute_force(LookupProblem(x[:, g], codebook[g]), metric) for g in range(3)]
    indices, distance = (torch.stack(parts, dim=1) for parts in zip(*answers, strict=True))
    assert_exact_lookup(x, codebook, indices, distance, metric)
    with pytest.raises(AssertionError):
        assert_exact_lookup(x, codebook.flip(0), indices, distance, metric)
    distance[9, 2] += 1
    with pytest.raises(AssertionError, match=r"group 2, vector 0 \+ 9: distance"):
        assert_exact_lookup(x, codebook, indices, distance, metric)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda i, d: (i.int(), d), "indices: expected torch.int64, got torch.int32"),
        (lambda i, d: (i, d.double()), "distance: expected torch.float32, got torch.float64"),
        (lambda i, d: (i[:-1], d), r"indices: expected shape \[8\], got \[7\]"),
        (lambda i, d: (i, d[:, None]), r"distance: expected shape \[8\], got \[8, 1\]"),
        (lambda i, d: (i + 10, d), r"indices: expected values in \[0, 10\), got 1\d to 1\d"),
        (lambda i, d: (i - 10, d), r"indices: expected values in \[0, 10\), got -"),
    ],
)
def test_malformed_answers_are_caught(spoil: Callable[..., Answer], message: str) -> None:
    problem = lookup_problem("gaussian", 8, 10, 3)
    with pytest.raises(AssertionError, match=message):
        assert_exact_lookup(*problem, *spoil(*brute_force(problem, "l2")))


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_random_answer_is_caught_on_every_problem(name: str) -> None:
    """No problem makes the assertion accept anything; where all codes are as good, only the first is right."""
    problem = lookup_problem(name, 40, 30, 6)
    indices, distance = torch.randint(1, 30, (40,)), torch.rand(40)
    with pytest.raises(AssertionError):
        assert_exact_lookup(*problem, indices, distance)


def test_budget_accepts_the_reference_and_rejects_twice_its_error() -> None:
    truth = torch.linspace(-1, 1, 101, dtype=torch.float64)
    reference = (truth + 1e-3).float()
    assert_within_budget(reference, truth, reference)
    assert_within_budget((truth - 1.9e-3).float(), truth, reference)
    with pytest.raises(AssertionError, match=r"^element 0: outside the error budget; got .* budget 2\.0"):
        assert_within_budget((truth - 2.1e-3).float(), truth, reference)
    with pytest.raises(AssertionError, match="element 0"):
        assert_within_budget((truth - 1.1e-3).float(), truth, reference, factor=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_budget_always_allows_one_rounding_and_not_three(dtype: torch.dtype) -> None:
    truth = torch.rand(1000, dtype=torch.float64) + 1
    rounded = truth.to(dtype)
    perfect = torch.tensor(rounded.double().tolist(), dtype=torch.float64)
    assert_within_budget(rounded, perfect, rounded)
    integers = rounded.clone().view(torch.int32 if dtype == torch.float32 else torch.int16)
    assert_within_budget((integers + 1).view(dtype), perfect, rounded, factor=2)
    with pytest.raises(AssertionError, match="outside the error budget"):
        assert_within_budget((integers + 3).view(dtype), perfect, rounded, factor=2)


def test_budget_treats_nonfinite_values_exactly() -> None:
    truth = torch.tensor([1.0, torch.inf, torch.nan], dtype=torch.float64)
    good = truth.float()
    assert_within_budget(good, truth, good)
    for index, value in ((0, torch.nan), (0, torch.inf), (1, 1.0), (1, -torch.inf), (2, 0.0)):
        bad = good.clone()
        bad[index] = value
        with pytest.raises(AssertionError, match=f"element {index}"):
            assert_within_budget(bad, truth, good)
    with pytest.raises(AssertionError, match="low_precision_reference: not finite where the truth is"):
        assert_within_budget(good, truth, torch.tensor([torch.nan, torch.inf, torch.nan]))


def test_budget_checks_its_arguments() -> None:
    truth = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(AssertionError, match=r"actual: expected shape \[3\], got \[2\]"):
        assert_within_budget(torch.zeros(2), truth, torch.zeros(3))
    with pytest.raises(AssertionError, match=r"low_precision_reference: expected shape \[3\], got \[1\]"):
        assert_within_budget(torch.zeros(3), truth, torch.zeros(1))
    with pytest.raises(AssertionError, match=r"truth: expected float64, got torch\.float32"):
        assert_within_budget(torch.zeros(3), truth.float(), torch.zeros(3))
    empty = torch.zeros(0)
    assert_within_budget(empty, empty.double(), empty)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_bitwise_equality(dtype: torch.dtype) -> None:
    values = torch.tensor([1.0, torch.nan, 0.0, torch.inf], dtype=dtype)
    assert_bitwise_equal(values, values.clone())
    assert_bitwise_equal(-values.abs(), -values.abs())  # the sign of a NaN is no number
    with pytest.raises(AssertionError, match=r"^flat element 2: 1 of 4 differ; got -0\.0, expected 0\.0$"):
        assert_bitwise_equal(torch.tensor([1.0, torch.nan, -0.0, torch.inf], dtype=dtype), values)
    nudged = values.clone()
    nudged.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])[0] += 1
    with pytest.raises(AssertionError, match="flat element 0"):
        assert_bitwise_equal(nudged, values)


def test_bitwise_equality_of_shape_and_dtype() -> None:
    with pytest.raises(AssertionError, match=r"actual: expected torch\.float32, got torch\.float64"):
        assert_bitwise_equal(torch.zeros(2).double(), torch.zeros(2))
    with pytest.raises(AssertionError, match=r"actual: expected shape \[1, 2\], got \[2\]"):
        assert_bitwise_equal(torch.zeros(2), torch.zeros(1, 2))
    with pytest.raises(AssertionError, match="1 of 2 differ; got 3, expected 4"):
        assert_bitwise_equal(torch.tensor([1, 3]), torch.tensor([1, 4]))
    assert_bitwise_equal(torch.zeros(3, 2).t(), torch.zeros(2, 3))
