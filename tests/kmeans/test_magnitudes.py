"""K-means of rows of any magnitudes. Oracle: float64 means of each cluster's own rows, to that cluster's digits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqkernels import KMeans, kmeans, nearest_code
from vqkernels.testing import assert_bitwise_equal, backend_device

OPS = ("nearest_code", "code_stats")
HUGE = 2.0**61


def blobs(n: int, clusters: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows, the first ones one in each cluster, and where the clusters are."""
    centres = 10 * torch.randn(clusters, d)
    nearest = torch.cat([torch.arange(clusters), torch.randint(clusters, (n - clusters,))])
    return centres[nearest] + 0.1 * torch.randn(n, d), centres


def assert_means(
    x: torch.Tensor,  # [N, D]
    weight: torch.Tensor | None,  # [N]
    start: torch.Tensor,  # [K, D]
    centroids: torch.Tensor,  # [K, D] after one update
) -> None:
    """Centroids of clusters that have rows are off by a float32 rounding of the largest number in the cluster."""
    indices = nearest_code(x, start).indices
    mass = torch.ones(len(x), dtype=torch.float64) if weight is None else weight.double()
    for cluster in indices.unique().tolist():
        own = indices == cluster
        mean = (x[own].double() * mass[own, None]).sum(0) / mass[own].sum()
        # a row keeps 24 bits at least, the mean is rounded once; float64 is exact beside that
        budget = 2.0**-23 * float(x[own].double().abs().max())
        assert float((centroids[cluster].double() - mean).abs().max()) <= budget


@settings(max_examples=15)
@given(
    n=st.integers(8, 90),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    weighted=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_a_mean_has_the_digits_of_its_own_rows(n: int, dtype: torch.dtype, weighted: bool, seed: int) -> None:
    torch.manual_seed(seed)
    size = 2.0 ** torch.randint(-40, 62, (n, 1)).double()
    x = (torch.rand(n, 2, dtype=torch.float64) * size).to(dtype)
    weight = (torch.rand(n) + 0.5) * 2.0 ** torch.randint(-40, 62, (n,)) if weighted else None
    start = x[:8].float()
    result = kmeans(x, 8, init=start, max_iter=1, tol=0.0, weight=weight)
    assert_means(x, weight, start, result.centroids)
    mass = torch.ones(n, dtype=torch.float64) if weight is None else weight.double()
    of_each = torch.zeros(8, dtype=torch.float64).index_add_(0, nearest_code(x, result.centroids).indices, mass)
    assert bool(((result.count - of_each).abs() <= 2.0**-23 * of_each).all())


@pytest.mark.parametrize("huge", [1e13, 1e14, HUGE])
@pytest.mark.parametrize("batch_size", [None, 256])
def test_a_huge_row_does_not_move_other_clusters(huge: float, batch_size: int | None) -> None:
    x, centres = blobs(2000, 20, 8)
    spoiled = torch.cat([x, torch.tensor([[huge] + [0.0] * 7])])
    start = torch.cat([centres, spoiled[-1:]])
    options: dict[str, Any] = {"max_iter": 3, "tol": 0.0, "batch_size": batch_size}
    got = kmeans(spoiled, 21, init=start, **options)
    want = kmeans(x, 20, init=centres, **options)
    assert_bitwise_equal(got.count, torch.cat([want.count, torch.ones(1)]))
    assert_bitwise_equal(got.centroids[20], spoiled[-1])
    # the mean of two roundings
    assert float((got.centroids[:20] - want.centroids).abs().max()) <= 2.0**-22 * float(x.abs().max())


@pytest.mark.parametrize("init", ["k-means++", "hierarchical", "random"])
def test_distinct_rows_of_any_magnitude_count(init: str) -> None:
    rows = torch.randn(121, 2)
    rows[::50] *= HUGE / 4
    x = rows[torch.cat([torch.arange(121), torch.randint(121, (600,))])]
    result = kmeans(x, 121, init=init, max_iter=3, tol=0.0)
    assert_means(x, None, result.centroids, result.centroids)
    assert float(result.count.min()) > 0
    with pytest.raises(ValueError, match="at most the 121 distinct rows of x, got 122"):
        kmeans(x, 122, init=init)


@pytest.mark.parametrize("init", ["k-means++", "hierarchical", "random"])
def test_rows_too_close_for_float32_distances_are_distinct(init: str) -> None:
    x = (torch.randn(40, 2) * 1e-30).repeat(3, 1)
    result = kmeans(x, 40, init=init, max_iter=2)
    assert_bitwise_equal(result.count, torch.full((40,), 3.0))
    assert_means(x, None, result.centroids, result.centroids)
    with pytest.raises(ValueError, match="at most the 40 distinct rows of x, got 41"):
        kmeans(x, 41, init=init)


@pytest.mark.parametrize("init", ["k-means++", "hierarchical"])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_the_largest_rows_and_weights_overflow_nothing(init: str, metric: str) -> None:
    x = torch.randn(90, 3)
    x *= 2.0**62 / x.norm(dim=1, keepdim=True) * (1 - 2.0**-20)
    result = kmeans(x, 9, init=init, metric=metric, weight=torch.full((90,), 2.0**62), max_iter=4)
    assert bool(result.centroids.isfinite().all())
    assert all(0 < inertia < float("inf") for inertia in result.history)
    assert float(result.count.double().sum()) == 90 * 2.0**62


def scattered(n: int, weighted: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows and weights of all magnitudes."""
    x = torch.randn(n, 3) * 2.0 ** torch.randint(-20, 58, (n, 1))
    return x, torch.rand(n) * 2.0 ** torch.randint(-30, 30, (n,)) if weighted else None


@pytest.mark.parametrize("weighted", [False, True])
def test_order_chunks_threads_and_later_passes_do_not_matter(weighted: bool) -> None:
    x, weight = scattered(120, weighted)
    options: dict[str, Any] = {"init": x[:10].clone(), "max_iter": 5, "tol": 0.0}
    want = kmeans(x, 10, weight=weight, **options)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        order = torch.randperm(120)
        mass = None if weight is None else weight[order]
        for source in (x[order], list(x[order].split(47))):
            got = kmeans(source, 10, weight=mass, **options)
            assert_bitwise_equal(got.centroids, want.centroids)
            assert_bitwise_equal(got.count, want.count)
            assert got.history == want.history
    # one update of what all but the last one made, from the rows and not from the pass before
    before = kmeans(x, 10, weight=weight, **{**options, "max_iter": want.iterations - 1})
    again = kmeans(x, 10, weight=weight, **{**options, "init": before.centroids, "max_iter": 1})
    assert_bitwise_equal(again.centroids, want.centroids)


def test_same_bits_on_every_backend(backend: str) -> None:
    device = backend_device(backend)
    x, weight = torch.randn(16, 2), torch.rand(16)
    x[::4] *= 2.0**50
    weight[::3] *= 2.0**40
    want, got = (
        kmeans(x.to(where), 4, init=x[:4].to(where), max_iter=1, weight=weight.to(where), backend=name)
        for where, name in (("cpu", "reference"), (device, backend))
    )
    assert_bitwise_equal(got.centroids.cpu(), want.centroids)
    assert_bitwise_equal(got.count.cpu(), want.count)
    assert got.history == want.history


def test_partial_fit_keeps_the_digits_of_every_cluster() -> None:
    x = torch.tensor([[1.0, 2.0], [1.5, 2.5], [HUGE, 0.0]])
    model = KMeans(2, init=torch.tensor([[1.0, 2.0], [HUGE, 0.0]])).partial_fit(x).partial_fit(x)
    assert_bitwise_equal(model.cluster_centers_, torch.tensor([[1.25, 2.25], [HUGE, 0.0]]))
