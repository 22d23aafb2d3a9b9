"""``nearest_code`` on every backend. Oracle: ``assert_exact_lookup``, the direct form in float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from vqkernels import NearestCode, nearest_code
from vqkernels.testing import (
    PROBLEMS,
    assert_bitwise_equal,
    assert_exact_lookup,
    call_on,
    interpreted,
    lookup_problem,
    strided,
)

OPS = ("nearest_code",)
METRICS = ("l2", "cosine", "dot")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def look_up(x: torch.Tensor, codebook: torch.Tensor, metric: str, backend: str) -> NearestCode:
    result: NearestCode = call_on(backend, partial(nearest_code, metric=metric), x, codebook)
    return result


def check(x: torch.Tensor, codebook: torch.Tensor, metric: str, backend: str) -> torch.Tensor:
    indices, distance = look_up(x, codebook, metric, backend)
    assert_exact_lookup(x, codebook, indices, distance, metric)
    return indices


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adversarial_inputs(problem: str, metric: str, dtype: torch.dtype, backend: str) -> None:
    sizes = [(70, 130, 1), (70, 130, 5), (33, 257, 64)]
    if interpreted(backend):  # slow: each problem at one size per metric and dtype
        turn = PROBLEMS.index(problem) + METRICS.index(metric) + DTYPES.index(dtype)
        sizes = [sizes[turn % 3]]
    for n, k, d in sizes:
        check(*lookup_problem(problem, n, k, d, dtype=dtype), metric, backend)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("codebook_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("x_dtype", DTYPES, ids=str)
def test_dtypes_mix(x_dtype: torch.dtype, codebook_dtype: torch.dtype, metric: str, backend: str) -> None:
    x, codebook = lookup_problem("near-ties", 50, 200, 9, dtype=torch.float64)
    check(x.to(x_dtype), codebook.to(codebook_dtype), metric, backend)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("groups", [1, 2, 3, 7])
def test_each_group_has_its_own_codebook(groups: int, metric: str, backend: str) -> None:
    x, codebook = lookup_problem("duplicates", 21, 40, 6, groups=groups)
    indices = check(x, codebook, metric, backend)
    for group in {0, groups - 1}:
        alone = look_up(x[:, group], codebook[group], metric, backend)
        assert torch.equal(indices[:, group], alone.indices)


@pytest.mark.parametrize("metric", METRICS)
def test_a_million_times_longer_vector_does_not_blur_its_neighbours(metric: str, backend: str) -> None:
    x, codebook = lookup_problem("gaussian", 64, 300, 16)
    x[7] *= 1e6
    x[8] *= 1e-6
    check(x, codebook, metric, backend)


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("metric", METRICS)
def test_large_codebook(metric: str, backend: str) -> None:
    check(*lookup_problem("gaussian", 12, 1 << 17, 4), metric, backend)


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("problem", ["near-ties", pytest.param("gaussian", marks=pytest.mark.slow)])
def test_a_million_codes(problem: str, backend: str) -> None:
    check(*lookup_problem(problem, 3, 1 << 20, 2), "l2", backend)


@pytest.mark.parametrize("metric", METRICS)
def test_ties_across_every_block_of_codes(metric: str, backend: str) -> None:
    x, codebook = lookup_problem("gaussian", 300, 8, 2)
    repeated = codebook.repeat(1000, 1)  # more pairs than any backend holds at once
    indices = look_up(x, repeated, metric, backend).indices
    assert torch.equal(indices, check(x, codebook, metric, backend))


@pytest.mark.parametrize("lead", [(), (1,), (0,), (3, 0), (2, 3), (2, 1, 3, 2)], ids=str)
@pytest.mark.parametrize("groups", [None, 3])
def test_leading_dimensions_are_kept(lead: tuple[int, ...], groups: int | None, backend: str) -> None:
    count = torch.Size(lead).numel()
    x, codebook = lookup_problem("gaussian", count, 20, 5, groups=groups)
    result = look_up(x.reshape(*lead, *x.shape[1:]), codebook, "l2", backend)
    flat = look_up(x, codebook, "l2", backend)
    assert result.indices.shape == result.distance.shape == (*lead, *x.shape[1:-1])
    assert torch.equal(result.indices.reshape(flat.indices.shape), flat.indices)


def layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The vectors ``[12, D]`` as views that a kernel which assumes rows of D neighbours would misread."""
    images = x.reshape(2, 2, 3, -1).permute(0, 3, 1, 2).contiguous()  # [B, D, H, W]
    return {
        "strided": strided(x),
        "transposed": x.t().contiguous().t(),
        "channels first": images.permute(0, 2, 3, 1),
        "reversed rows": x.flip(0).as_strided(x.shape, x.stride()),
        "expanded": x[:1].expand(12, -1),
        "offset": torch.cat([torch.full_like(x[:1], torch.nan), x])[1:],
    }


@pytest.mark.parametrize("layout", layouts(torch.zeros(12, 2)))
@pytest.mark.parametrize("metric", METRICS)
def test_strides_do_not_matter(layout: str, metric: str, backend: str) -> None:
    x, codebook = lookup_problem("gaussian", 12, 40, 7)
    check(layouts(x)[layout], strided(codebook), metric, backend)


def test_strided_groups(backend: str) -> None:
    x, codebook = lookup_problem("gaussian", 30, 40, 7, groups=4)
    check(strided(x), strided(codebook), "l2", backend)
    check(x.transpose(0, 1).contiguous().transpose(0, 1), codebook.mT.contiguous().mT, "l2", backend)


def test_inputs_are_left_alone_and_outputs_carry_no_gradient(backend: str) -> None:
    x, codebook = (t.requires_grad_() for t in lookup_problem("gaussian", 40, 20, 8))
    before = x.detach().clone(), codebook.detach().clone()
    result = look_up(x, codebook, "l2", backend)
    assert not result.indices.requires_grad
    assert not result.distance.requires_grad
    assert_bitwise_equal(x, before[0])
    assert_bitwise_equal(codebook, before[1])


def test_zero_vectors_have_cosine_distance_one(backend: str) -> None:
    codebook = torch.tensor([[torch.nan, 0.0], [-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    x = torch.tensor([[0.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [4.0, 0.0]])
    result = look_up(x, codebook, "cosine", backend)
    # a zero vector is as far from every usable code; an orthogonal one ties with the zero code
    assert result.indices.tolist() == [1, 1, 1, 3]
    assert result.distance.tolist() == [1.0, 1.0, 0.0, 0.0]


def test_first_of_equal_distances_wins(backend: str) -> None:
    codebook = torch.tensor([[9.0], [1.0], [-1.0], [1.0], [-1.0]])
    assert look_up(torch.zeros(2, 1), codebook, "l2", backend).indices.tolist() == [1, 1]
    assert look_up(torch.zeros(2, 1), codebook.flip(0), "l2", backend).indices.tolist() == [0, 0]


def test_distance_is_never_negative(backend: str) -> None:
    # every vector is a code scaled by a power of two: cosine 1 up to rounding, on either side
    _, codebook = lookup_problem("gaussian", 0, 500, 33)
    for metric, x in (("cosine", codebook * 4), ("l2", codebook)):
        distance = look_up(x, codebook, metric, backend).distance
        assert bool((distance >= 0).all())
        assert bool((distance < 1e-6).all())
