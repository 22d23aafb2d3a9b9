"""``kmeans``. Oracles: Lloyd's algorithm with the full distance matrix in float64; what a fixed point is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import vqkernels
from vqkernels import KMeans, kmeans, nearest_code
from vqkernels.testing import assert_bitwise_equal, assert_exact_lookup, assert_within_budget


def blobs(n: int, clusters: int, d: int, spread: float = 0.1) -> torch.Tensor:
    centres = torch.randn(clusters, d) * 3
    return centres[torch.randint(clusters, (n,))] + spread * torch.randn(n, d)


def lloyd(
    x: torch.Tensor, centroids: torch.Tensor, weight: torch.Tensor, steps: int, metric: str, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Centroids and the inertia of each, before every update and after the last."""
    x, centroids, weight = x.to(dtype), centroids.to(dtype), weight.to(dtype)
    x = F.normalize(x, dim=1) if metric == "cosine" else x
    inertia = []
    for step in range(steps + 1):
        distance = 1 - x @ centroids.T if metric == "cosine" else (x[:, None] - centroids).square().sum(2)
        nearest = distance.min(dim=1)
        inertia.append((nearest.values * weight).sum())
        if step < steps:
            onehot = F.one_hot(nearest.indices, len(centroids)).to(dtype) * weight[:, None]
            total = onehot.T @ x
            centroids = F.normalize(total, dim=1) if metric == "cosine" else total / onehot.sum(0)[:, None]
    return centroids, torch.stack(inertia)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("weighted", [False, True])
def test_iterations_are_those_of_lloyd(metric: str, weighted: bool) -> None:
    x = torch.randn(300, 5) + 1
    start = x[:8]  # no cluster is ever empty
    start = F.normalize(start, dim=1) if metric == "cosine" else start
    weight = torch.rand(300) + 0.5 if weighted else None
    result = kmeans(x, 8, metric=metric, init=start, max_iter=4, tol=0.0, weight=weight)
    mass = torch.ones(300) if weight is None else weight
    wide, plain = (lloyd(x, start, mass, 4, metric, dtype) for dtype in (torch.float64, torch.float32))
    assert result.iterations == 4
    assert_within_budget(result.centroids, wide[0], plain[0])
    assert_within_budget(torch.tensor(result.history, dtype=torch.float64), wide[1], plain[1])
    assert result.inertia == result.history[-1]
    if metric == "l2" and not weighted:
        rows = torch.arange(300).repeat_interleave(3)
        tripled = kmeans(x[rows], 8, init=start, max_iter=4, tol=0.0)
        thrice = kmeans(x, 8, init=start, max_iter=4, tol=0.0, weight=torch.full((300,), 3.0))
        assert_within_budget(tripled.centroids, wide[0], plain[0])
        assert_bitwise_equal(tripled.count, thrice.count)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("init", ["k-means++", "random"])
@pytest.mark.parametrize("num_clusters", [1, 40, 300])
def test_result_is_consistent_and_inertia_never_rises(metric: str, init: str, num_clusters: int) -> None:
    x = blobs(1500, 60, 6, 0.5)
    result = kmeans(x, num_clusters, metric=metric, init=init, max_iter=60, tol=0.0)
    history = torch.tensor(result.history, dtype=torch.float64)
    # float32 centroids are off by half a unit in the last place, and a mean by a few more
    slack = 16 * 2.0**-24 * float(x.square().sum())
    assert bool((history.diff() <= slack).all())
    assert result.iterations == len(result.history) - 1 < 60  # it found a fixed point
    rows = F.normalize(x.double(), dim=1).float() if metric == "cosine" else x
    indices, distance = nearest_code(rows, result.centroids, metric=metric)
    assert_exact_lookup(rows, result.centroids, indices, distance, metric)
    assert_bitwise_equal(result.count, indices.bincount(minlength=num_clusters).float())
    assert float(result.count.min()) > 0
    assert abs(result.inertia - float(distance.double().sum())) <= 1500 * 2.0**-53 * result.inertia
    fixed = lloyd(x, result.centroids, torch.ones(1500), 1, metric, torch.float64)[0]
    assert float((fixed - result.centroids).abs().max()) <= 16 * 2.0**-24 * float(rows.abs().max())


@pytest.mark.covering
@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("num_clusters", [5, 60])
def test_same_seed_same_bits_whatever_the_threads(metric: str, num_clusters: int) -> None:
    # long enough that plain sums are split over the threads
    x = blobs(40000, 100, 4, 1.0)
    options = {"metric": metric, "max_iter": 2, "weight": torch.rand(40000)}
    results = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        results.append(kmeans(x, num_clusters, seed=5, **options))
    for other in results[1:]:
        assert_bitwise_equal(other.centroids, results[0].centroids)
        assert_bitwise_equal(other.count, results[0].count)
        assert other.history == results[0].history
    assert not torch.equal(kmeans(x, num_clusters, seed=6, **options).centroids, results[0].centroids)


@pytest.mark.parametrize("num_clusters", [30, 300])
def test_seeding_finds_every_far_cluster(num_clusters: int) -> None:
    # clusters a thousand times farther apart than wide: one k-means++ seed each, with near certainty
    grid = torch.cartesian_prod(torch.arange(20.0), torch.arange(20.0))[:num_clusters] * 100
    x = (grid[:, None] + 0.05 * torch.randn(num_clusters, 20, 2)).reshape(-1, 2)
    result = kmeans(x, num_clusters, max_iter=5)
    assert float((result.count - 20).abs().max()) == 0


@pytest.mark.parametrize("init", ["k-means++", "random"])
@pytest.mark.parametrize("distinct", [12, 290])
def test_as_many_clusters_as_distinct_rows(init: str, distinct: int) -> None:
    rows = torch.randn(distinct, 3)
    x = torch.cat([rows, rows[torch.randint(distinct, (9000,))]])
    for seed in range(5):
        result = kmeans(x, distinct, init=init, seed=seed)
        # the mean of equal rows is theirs up to two roundings
        assert result.inertia <= x.numel() * (2.0**-23 * float(x.abs().max())) ** 2
        assert float(result.count.min()) > 0
    for start in (init, torch.randn(distinct + 1, 3)):
        with pytest.raises(ValueError, match=f"at most the {distinct} distinct rows of x, got {distinct + 1}"):
            kmeans(x, distinct + 1, init=start)


def test_repeated_rows_far_away_do_not_use_up_the_candidates() -> None:
    # each far value takes every draw of a whole round of k-means||
    far = torch.logspace(3, 10, 8)[:, None].expand(8, 2).repeat_interleave(1000, dim=0)
    x = torch.cat([torch.randn(290, 2), far])
    weight = torch.cat([torch.full((290,), 100.0), torch.ones(8000)])  # the first draw is near
    for seed in range(3):
        assert float(kmeans(x, 298, max_iter=0, weight=weight, seed=seed).count.min()) > 0


def test_an_empty_cluster_splits_the_worst() -> None:
    # the farthest row of all is alone with its centroid; then 3 rows within 9, and 51 within 30 and twice the same
    x = torch.cat([torch.randn(50, 2), torch.tensor([[30.0, 0.0], [100.0, 3.0], [100.0, -3.0], [100.0, 0.0]])])
    x = torch.cat([x, torch.tensor([[-900.0, 0.0], [30.0, 0.0]])])
    start = torch.tensor([[0.0, 0.0], [2e3, 2e3], [100.0, 0.0], [-850.0, 0.0], [2e3, -2e3]])
    told: list[tuple[int, float, int, int]] = []
    result = kmeans(x, 5, init=start, max_iter=1, tol=0.0, callback=lambda *args: told.append(args))
    assert told[0][3] == 2
    # weight times squared distance: 52 * 900, 1 * 2500, 3 * 9
    assert_bitwise_equal(result.centroids[[1, 4]], torch.tensor([[30.0, 0.0], [-900.0, 0.0]]))
    start = torch.full((4, 2), 1e3)
    start[0] = 0
    result = kmeans(x, 4, init=start)
    assert float(result.count.min()) > 0
    assert bool((result.centroids.norm(dim=1) <= 900).all())


def test_rows_that_do_not_count_are_as_if_they_were_not_there() -> None:
    x = torch.randn(200, 4)
    weight = torch.rand(200) + 0.1
    keep = torch.rand(200) > 0.3
    for spoil in ("nonfinite", "weight"):
        y, w = x.clone(), weight.clone()
        if spoil == "nonfinite":
            y[~keep, 1] = torch.nan
        else:
            w[~keep] = 0
        got, want = kmeans(y, 10, weight=w), kmeans(x[keep], 10, weight=weight[keep])
        assert_bitwise_equal(got.centroids, want.centroids)
        assert got.history == want.history
    y = x.clone()
    y[~keep] = 0
    got, want = kmeans(y, 10, metric="cosine"), kmeans(x[keep], 10, metric="cosine")
    assert_bitwise_equal(got.centroids, want.centroids)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_read_as_they_are(dtype: torch.dtype) -> None:
    x = torch.randn(200, 4).bfloat16().float()  # fits in all of them but for float16's range
    x = x.half().float()
    x = x.to(dtype).float()
    got, want = kmeans(x.to(dtype), 10), kmeans(x, 10)
    assert got.centroids.dtype == torch.float32
    assert_bitwise_equal(got.count, want.count)
    # float64 sums are not rounded to float32 before the division
    assert float((got.centroids - want.centroids).abs().max()) <= 2.0**-22 * float(x.abs().max())


def test_numpy_rows_and_offset_data() -> None:
    x = blobs(500, 5, 3)
    moved = kmeans((x + 1e4).double().numpy(), 5)
    assert isinstance(moved.centroids, torch.Tensor)
    plain = kmeans(x, 5)
    # float32 centroids near 1e4
    assert float((moved.centroids.sort(0).values - 1e4 - plain.centroids.sort(0).values).abs().max()) < 2e-3
    assert_bitwise_equal(kmeans(np.asarray(x), 5).centroids, plain.centroids)


def test_callback_hears_of_every_assignment() -> None:
    x = torch.randn(100, 2)
    told: list[tuple[int, float, int, int]] = []
    result = kmeans(x, 5, callback=lambda *args: told.append(args), tol=0.0)
    assert [args[0] for args in told] == list(range(result.iterations + 1))
    assert [args[1] for args in told] == result.history
    assert told[0][2] == 100
    assert told[-1][2:] == (0, 0)


def test_tol_stops_early_and_max_iter_stops_at_once() -> None:
    x = torch.randn(2000, 2)
    full, early = kmeans(x, 50, tol=0.0, max_iter=300), kmeans(x, 50, tol=0.05, max_iter=300)
    assert early.iterations < full.iterations
    none = kmeans(x, 50, max_iter=0)
    assert (none.iterations, len(none.history)) == (0, 1)
    assert none.inertia > early.inertia > full.inertia


@pytest.mark.parametrize("max_iter", [1, 3])
def test_count_and_inertia_of_mini_batches_are_those_of_the_result(max_iter: int) -> None:
    x = blobs(700, 12, 4, 0.5)
    result = kmeans(x, 10, batch_size=64, max_iter=max_iter, tol=0.0)
    indices, distance = nearest_code(x, result.centroids)
    assert_bitwise_equal(result.count, indices.bincount(minlength=10).float())
    assert abs(result.inertia - float(distance.double().sum())) <= 700 * 2.0**-53 * result.inertia


def test_the_best_of_several_starts_is_returned() -> None:
    x = torch.randn(500, 2)
    single = [kmeans(x, 20, seed=seed, init="random", max_iter=3) for seed in range(3, 7)]
    best = kmeans(x, 20, seed=3, init="random", max_iter=3, n_init=4)
    want = min(single, key=lambda result: result.inertia)
    assert want.inertia < single[0].inertia
    assert_bitwise_equal(best.centroids, want.centroids)
    told: list[int] = []
    kmeans(x, 20, init=x[:20], max_iter=0, n_init=4, callback=lambda *args: told.append(args[0]))
    assert told == [0]


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_centroids_to_start_from_are_a_tensor_or_an_array(metric: str) -> None:
    x, start = torch.randn(90, 3), torch.randint(-9, 9, (5, 3))
    want = kmeans(x, 5, init=start.float(), metric=metric, max_iter=2)
    for given in (start.numpy(), start.double().numpy(), start.half().numpy()[::-1][::-1], start.tolist()):
        assert_bitwise_equal(kmeans(x, 5, init=given, metric=metric, max_iter=2).centroids, want.centroids)
        assert_bitwise_equal(KMeans(5, init=given, metric=metric, max_iter=2).fit(x).cluster_centers_, want.centroids)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_rows_too_long_for_their_distances_are_left_out(metric: str) -> None:
    """Oracle: the others alone. Under the cosine a length is no matter."""
    x = torch.randn(60, 3, dtype=torch.float64)
    far = x.clone()
    far[::20] *= torch.tensor([1e19, 1e38, 1e160], dtype=torch.float64)[:, None]
    kept = far if metric == "cosine" else torch.cat([x[1:20], x[21:40], x[41:]])
    assert_bitwise_equal(kmeans(far, 5, metric=metric).centroids, kmeans(kept, 5, metric=metric).centroids)
    # up to there all is as usual
    near = x * 2.0**62 / x.norm(dim=1).max() * (1 - 2.0**-50)
    result = kmeans(near, 5, metric=metric)
    assert float(result.count.sum()) == 60
    assert math.isfinite(result.inertia)


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    result = kmeans(torch.randn(100, 2), 5, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == result.iterations + 1
    assert "rows/s" in captured.err
    assert "ETA" in captured.err


def test_the_package_attribute_is_the_function() -> None:
    import vqkernels.kmeans

    assert vqkernels.kmeans is kmeans


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_clusters": 0}, ValueError, "num_clusters"),
        ({"num_clusters": 21}, ValueError, "num_clusters: expected at most the 20 usable rows of x, got 21"),
        ({"metric": "dot"}, ValueError, "metric: expected one of l2, cosine, got 'dot'"),
        ({"init": "zeros"}, ValueError, "init"),
        ({"init": torch.zeros(4, 3)}, ValueError, "init: expected shape"),
        ({"init": torch.full((3, 3), torch.nan)}, ValueError, "init: expected finite"),
        ({"init": np.full((3, 3), 1e300)}, ValueError, "init: expected finite"),
        ({"init": np.zeros((4, 3))}, ValueError, "init: expected shape"),
        ({"init": np.array(["a"])}, ValueError, "init: expected numbers, got <U1"),
        ({"init": np.array([None, {}])}, TypeError, "init: expected numbers, got others"),
        ({"init": [[1.0, 2.0], [3.0]]}, ValueError, "init: expected numbers, got others"),
        ({"init": np.zeros((3, 3), complex)}, TypeError, "init: expected a floating point tensor"),
        ({"init": torch.zeros(3, 3, dtype=torch.int64)}, TypeError, "init: expected a floating point tensor"),
        ({"seed": 1 << 63}, ValueError, r"seed: expected an integer in \[-2\^63, 2\^63\)"),
        ({"seed": (1 << 63) - 1, "n_init": 2}, ValueError, "seed: expected n_init seeds of 64 bits"),
        ({"x": np.zeros((20, 3), np.int64)}, TypeError, "x: expected a floating point tensor"),
        ({"x": np.array([["a"]])}, ValueError, "x: expected numbers, got <U1"),
        ({"x": [np.array([[None]]), np.array([[{}]])]}, TypeError, "x: expected numbers, got others"),
        ({"max_iter": -1}, ValueError, "max_iter"),
        ({"n_init": 0}, ValueError, r"n_init: expected an integer in \[1, 2\^31\), got 0"),
        ({"tol": torch.nan}, ValueError, "tol"),
        ({"weight": torch.ones(4)}, ValueError, "weight: expected shape"),
        ({"weight": -torch.ones(20)}, ValueError, "weight: expected finite"),
        ({"x": torch.zeros(4)}, ValueError, r"x: expected \[N, D\]"),
        ({"x": torch.zeros(20, 3, dtype=torch.int64)}, TypeError, "x"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"x": 3}, TypeError, "x: expected a tensor"),
        ({"x": iter([])}, TypeError, "gone through again"),
        ({"x": [torch.zeros(4, 2), torch.zeros(4, 3)]}, ValueError, "x: expected rows of 2 numbers"),
        ({"backend": "abacus"}, ValueError, "backend"),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"x": torch.randn(20, 3), "num_clusters": 3, **change}
    with pytest.raises(error, match=message):
        vqkernels.kmeans(**arguments)
