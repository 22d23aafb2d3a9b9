"""``multilevel_nearest_code`` on the CPU. Oracle: ``assert_exact_multilevel``, the direct form in float64.

``test_multilevel_nearest_code_triton.py`` holds the Triton backend to the definition with fewer, smaller problems.
"""

from __future__ import annotations

import math

import pytest
import torch
from multilevel import MultilevelProblem, assert_exact_multilevel, multilevel_problem

from vqkernels import NearestCode, gather_codes, multilevel_nearest_code, nearest_code
from vqkernels.testing import PROBLEMS, assert_bitwise_equal, assert_within_budget, strided, usable_backends

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

BACKENDS = [name for name in usable_backends("multilevel_nearest_code") if name in ("cpu", "reference")]
each_power = pytest.mark.parametrize("squared", [False, True], ids=["distance", "squared"])


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def check(problem: MultilevelProblem, weights: tuple[float, ...], squared: bool, backend: str) -> NearestCode:
    result = multilevel_nearest_code(*problem, weights, squared=squared, backend=backend)
    assert_exact_multilevel(problem, weights, squared, result)
    return result


@each_power
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adversarial_inputs(name: str, squared: bool, dtype: torch.dtype, backend: str) -> None:
    for names in ((name,), (name, "gaussian"), ("duplicates", name)):
        check(multilevel_problem(names, 40, 130, (3, 17), dtype=dtype), (1.0, 0.5), squared, backend)


@each_power
@pytest.mark.parametrize(
    "weights",
    [(1.0, 1.0, 1.0), (0.0, 1.0, 2.0), (1.0, 0.0, 0.0), (1e-30, 1.0, 1e30), (1e-300, 1e-300, 1e-300), (3, 1e-7, 1)],
    ids=str,
)
def test_weights(weights: tuple[float, ...], squared: bool, backend: str) -> None:
    for name in ("gaussian", "near-ties", "duplicates", "scale-1e18", "nonfinite"):
        check(multilevel_problem((name, "gaussian"), 50, 120, (2, 5, 1)), weights, squared, backend)


@each_power
def test_levels_of_very_different_scale(squared: bool, backend: str) -> None:
    # in the heavy level all codes are the same, so that the light one decides
    for light in (1e-3, 1e-12, 1e-25):
        xs, codebooks = multilevel_problem(("all-equal", "gaussian"), 60, 200, (4, 4))
        problem = MultilevelProblem([xs[0], xs[1] * light], [codebooks[0], codebooks[1] * light])
        result = check(problem, (1.0, 1.0), squared, backend)
        assert torch.equal(result.indices, nearest_code(xs[1], codebooks[1], backend="reference").indices)


@each_power
@pytest.mark.parametrize("levels", range(1, 9))
def test_every_number_of_levels(levels: int, squared: bool, backend: str) -> None:
    dims = tuple(1 + (3 * level) % 7 for level in range(levels))
    weights = tuple(1.0 / (level + 1) for level in range(levels))
    check(multilevel_problem(("clustered", "near-ties", "gaussian"), 45, 150, dims), weights, squared, backend)


@pytest.mark.parametrize("name", PROBLEMS)
def test_one_squared_level_is_nearest_code(name: str, backend: str) -> None:
    (x,), (codebook,) = problem = multilevel_problem((name,), 60, 150, (6,))
    alone = nearest_code(x, codebook, backend="reference")
    result = multilevel_nearest_code(*problem, (1.0,), squared=True, backend=backend)
    assert_bitwise_equal(result.indices, alone.indices)
    assert_bitwise_equal(result.distance, alone.distance)


@pytest.mark.parametrize("name", ["gaussian", "clustered", "scale-1e18", "nonfinite"])
def test_one_level_has_the_index_of_nearest_code(name: str, backend: str) -> None:
    # no near-ties: two squares may have one root
    (x,), (codebook,) = problem = multilevel_problem((name,), 60, 150, (6,))
    alone = nearest_code(x, codebook, backend="reference")
    assert_bitwise_equal(multilevel_nearest_code(*problem, (3.0,), backend=backend).indices, alone.indices)


def test_equal_weights_and_squares_are_the_concatenation(backend: str) -> None:
    # sums of integers, the same in every order
    xs, codebooks = problem = multilevel_problem(("exact-integers",), 200, 90, (1, 4, 2))
    joined = nearest_code(torch.cat(xs, dim=1), torch.cat(codebooks, dim=1), backend="reference")
    result = multilevel_nearest_code(*problem, (1, 1, 1), squared=True, backend=backend)
    assert_bitwise_equal(result.indices, joined.indices)
    assert_bitwise_equal(result.distance, joined.distance)


@pytest.mark.parametrize(
    ("weights", "squared", "index", "distance"),
    [((1, 1), False, 0, 5.0), ((1, 1), True, 1, 18.0), ((1, 2), False, 1, 9.0), ((4, 1), True, 0, 25.0)],
)
def test_by_hand(weights: tuple[int, int], squared: bool, index: int, distance: float, backend: str) -> None:
    # one code is at (0, 5), the other at (3, 3)
    xs, codebooks = [torch.zeros(1, 1)] * 2, [torch.tensor([[0.0], [3.0]]), torch.tensor([[5.0], [3.0]])]
    result = multilevel_nearest_code(xs, codebooks, weights, squared=squared, backend=backend)
    assert (result.indices.item(), result.distance.item()) == (index, distance)


@each_power
def test_first_of_equal_distances_wins(squared: bool, backend: str) -> None:
    # 3 + 1 = 1 + 3: a tie between codes that differ in every level
    codebooks = [torch.tensor([[9.0], [3.0], [1.0], [3.0]]), torch.tensor([[9.0], [1.0], [3.0], [1.0]])]
    xs = [torch.zeros(2, 1), torch.zeros(2, 1)]
    for order, first in ((codebooks, 1), ([codebook.flip(0) for codebook in codebooks], 0)):
        result = multilevel_nearest_code(xs, order, (0.5, 0.5), squared=squared, backend=backend)
        assert result.indices.tolist() == [first, first]


@each_power
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_non_finite_level_counts_whatever_its_weight(weight: float, squared: bool, backend: str) -> None:
    for bad in (math.nan, math.inf, -math.inf):
        xs = [torch.zeros(3, 2), torch.tensor([[0.0], [bad], [1.0]])]
        codebooks = [torch.zeros(3, 2), torch.tensor([[bad], [2.0], [0.0]])]
        result = multilevel_nearest_code(xs, codebooks, (1.0, weight), squared=squared, backend=backend)
        assert result.indices.tolist() == ([1, 0, 1] if weight == 0 else [2, 0, 1])
        assert result.distance.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("codebook_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("x_dtype", DTYPES, ids=str)
def test_dtypes_mix(x_dtype: torch.dtype, codebook_dtype: torch.dtype, backend: str) -> None:
    xs, codebooks = multilevel_problem(("near-ties",), 50, 200, (9, 3), dtype=torch.float64)
    problem = MultilevelProblem(
        [xs[0].to(x_dtype), xs[1].float()], [codebooks[0].to(codebook_dtype), codebooks[1].half()]
    )
    check(problem, (1.0, 2.0), False, backend)


@pytest.mark.parametrize("lead", [(), (1,), (0,), (3, 0), (2, 3), (2, 1, 3, 2)], ids=str)
def test_leading_dimensions_are_kept(lead: tuple[int, ...], backend: str) -> None:
    xs, codebooks = multilevel_problem(("gaussian",), torch.Size(lead).numel(), 20, (5, 2))
    shaped = [x.reshape(*lead, x.shape[1]) for x in xs]
    result = multilevel_nearest_code(shaped, codebooks, (1, 1), backend=backend)
    flat = multilevel_nearest_code(xs, codebooks, (1, 1), backend=backend)
    assert result.indices.shape == result.distance.shape == lead
    assert torch.equal(result.indices.reshape(-1), flat.indices)


def test_strides_do_not_matter(backend: str) -> None:
    # one tensor cut into levels, as a model makes them
    (x,), (codebook,) = multilevel_problem(("gaussian",), 30, 40, (7,))
    cut = MultilevelProblem([x[:, :3], strided(x[:, 3:])], [codebook[:, :3], strided(codebook[:, 3:])])
    check(cut, (1.0, 1.0), False, backend)
    channels_last = x.t().contiguous().t()
    check(MultilevelProblem([channels_last[:, :3], channels_last[:, 3:]], cut.codebooks), (1.0, 1.0), False, backend)


def test_weights_may_be_a_tensor(backend: str) -> None:
    problem = multilevel_problem(("gaussian",), 30, 40, (7, 2))
    expected = multilevel_nearest_code(*problem, [0.5, 2.0], backend=backend)
    result = multilevel_nearest_code(*problem, torch.tensor([0.5, 2.0]), backend=backend)
    assert_bitwise_equal(result.distance, expected.distance)


def test_gradients_come_from_the_gathered_codes(backend: str) -> None:
    """The documented way to train, against the float64 derivative of the same expression."""
    problem = multilevel_problem(("gaussian",), 20, 9, (4, 2))
    weights = (1.0, 0.5)

    def gradients(dtype: torch.dtype) -> list[torch.Tensor]:
        xs, codebooks = ([t.to(dtype).requires_grad_() for t in levels] for levels in problem)
        indices, distance = multilevel_nearest_code(xs, codebooks, weights, backend=backend)
        assert not indices.requires_grad
        assert not distance.requires_grad
        codes = [gather_codes(codebook, indices) for codebook in codebooks]
        loss = sum(w * (x - c).norm(dim=1).sum() for w, x, c in zip(weights, xs, codes, strict=True))
        return list(torch.autograd.grad(loss, [*xs, *codebooks]))

    for actual, truth in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        assert_within_budget(actual, truth, truth.float())
