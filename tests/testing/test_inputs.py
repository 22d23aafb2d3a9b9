"""The lookup problems are what their names say. Oracle: the property itself, computed in float64."""

from __future__ import annotations

import pytest
import torch

from vqkernels.testing import PROBLEMS, assert_bitwise_equal, lookup_problem, strided

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_shapes_dtype_and_repeatability(name: str, dtype: torch.dtype) -> None:
    for n, k, d in ((0, 1, 1), (1, 1, 3), (7, 20, 2)):
        flat = lookup_problem(name, n, k, d, dtype=dtype)
        assert (flat.x.shape, flat.codebook.shape) == ((n, d), (k, d))
        grouped = lookup_problem(name, n, k, d, groups=3, dtype=dtype)
        assert (grouped.x.shape, grouped.codebook.shape) == ((n, 3, d), (3, k, d))
        again = lookup_problem(name, n, k, d, groups=3, dtype=dtype)
        for first, second in zip(grouped, again, strict=True):
            assert first.dtype == dtype
            assert first.is_contiguous()
            assert_bitwise_equal(first, second)


def test_seeds_and_groups_differ() -> None:
    x, codebook = lookup_problem("gaussian", 5, 6, 3, groups=2)
    assert bool((codebook[0] != codebook[1]).any())
    assert bool((x != lookup_problem("gaussian", 5, 6, 3, groups=2, seed=1).x).any())


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"^name: expected one of gaussian, .*, got 'normal'$"):
        lookup_problem("normal", 1, 1, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_integers(dtype: torch.dtype) -> None:
    x, codebook = lookup_problem("exact-integers", 50, 60, 4, dtype=dtype)
    both = torch.cat([x, codebook]).double()
    assert bool((both == both.round()).all())
    assert float(both.abs().max()) == 3
    distance = (x[:, None].double() - codebook.double()).square().sum(2)
    ties = (distance == distance.min(1, keepdim=True).values).sum(1)
    assert int(ties.max()) > 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_near_ties_are_near_and_some_are_exact(dtype: torch.dtype) -> None:
    x, codebook = lookup_problem("near-ties", 20, 200, 8, dtype=dtype)
    distance = (x[:, None].double() - codebook.double()).square().sum(2).sort(1).values
    gap = (distance[:, 1] - distance[:, 0]) / distance[:, 0]
    # one unit in the last place of a coordinate, and the rounding of the mirrored code, of values up to a few
    assert float(gap.max()) < 16 * torch.finfo(dtype).eps
    assert bool((gap > 0).any())
    assert bool((codebook[:, None] == codebook).all(2).sum(1).max() > 1)


def test_duplicates() -> None:
    x, codebook = lookup_problem("duplicates", 40, 80, 5)
    assert torch.unique(codebook, dim=0).shape[0] <= 10
    assert int((x[:, None] == codebook).all(2).any(1).sum()) >= 20


def test_all_equal() -> None:
    x, codebook = lookup_problem("all-equal", 4, 6, 5)
    assert bool((x == x[0]).all())
    assert bool((codebook == x[0]).all())


@pytest.mark.parametrize(
    ("name", "ratio"), [("offset-1e4", 1e4), ("offset-100-sigma", 100.0), ("offset-1e13-sigma", 1e13)]
)
def test_offsets(name: str, ratio: float) -> None:
    for values in lookup_problem(name, 2000, 2000, 4, dtype=torch.float64):
        assert float(values.mean() / values.std()) == pytest.approx(ratio, rel=0.05)


@pytest.mark.parametrize(("name", "scale"), [("scale-1e-20", 1e-20), ("scale-1e18", 1e18), ("largest-half", 15000)])
def test_scales(name: str, scale: float) -> None:
    for values in lookup_problem(name, 2000, 2000, 4):
        assert float(values.double().std()) == pytest.approx(scale, rel=0.05)


def test_largest_half_reaches_the_limit_of_float16_and_stays_finite() -> None:
    x, codebook = lookup_problem("largest-half", 300, 300, 4, dtype=torch.float16)
    assert 30000 < float(torch.cat([x, codebook]).abs().max()) < torch.inf


def test_two_clusters_and_clustered() -> None:
    for values in lookup_problem("two-clusters", 100, 100, 3):
        side = values.mean(1).sign()
        assert set(side.tolist()) == {-1.0, 1.0}
        assert float((values - 1e4 * side[:, None]).abs().max()) < 10
    x, codebook = lookup_problem("clustered", 100, 100, 8)
    distance = torch.cdist(x, codebook).sort(1).values
    # most codes are many deviations away, the nearest is not
    assert bool((distance[:, 50] > 20 * distance[:, 0]).float().mean() > 0.5)


def test_outliers_and_far_away() -> None:
    lengths = lookup_problem("outlier-code", 5, 31, 6).codebook.norm(dim=1)
    assert int((lengths > 1e5).sum()) == 1
    x, codebook = lookup_problem("far-vectors", 32, 50, 6)
    lengths = x.double().norm(dim=1)
    assert float(lengths.min()) > 1e13 * float(codebook.norm(dim=1).max())
    assert float(lengths.max()) > 1e30
    assert bool(x.isfinite().all())
    x, codebook = lookup_problem("far-codebook", 50, 50, 6, dtype=torch.float64)
    assert float(x.abs().max()) < 10
    assert float((codebook - 1e15).abs().max()) < 10
    assert torch.unique(codebook, dim=0).shape[0] == 50


def test_zero_vectors() -> None:
    x, codebook = lookup_problem("zero-vectors", 9, 9, 4)
    assert (x == 0).all(1).nonzero().flatten().tolist() == [0, 3, 6]
    assert (codebook == 0).all(1).nonzero().flatten().tolist() == [1, 4, 7]


def test_nonfinite() -> None:
    for values in lookup_problem("nonfinite", 30, 30, 4):
        assert values.isfinite().all(1).tolist() == [False, True] * 15
        assert values.isnan().any()
        assert values.isposinf().any()
        assert values.isneginf().any()
    assert bool(lookup_problem("no-finite-code", 3, 5, 2).codebook.isnan().all())


@pytest.mark.parametrize("tensor", [torch.randn(4), torch.randn(3, 5), torch.randn(2, 3, 4), torch.arange(6)])
def test_strided(tensor: torch.Tensor) -> None:
    view = strided(tensor)
    assert_bitwise_equal(view, tensor)
    assert min(view.stride()) >= 2
    # a kernel that reads past the strides meets a poisonous number first
    beside = view.as_strided((1,), (1,), view.storage_offset() + 1)
    assert bool(beside.isnan() if tensor.is_floating_point() else beside < -(2**31))
