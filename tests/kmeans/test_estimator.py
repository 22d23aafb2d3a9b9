"""``KMeans``. Oracles: scikit-learn's own checks of estimators; ``kmeans`` for what is computed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import check_estimator

import vqkernels
from vqkernels import KMeans, kmeans
from vqkernels.kmeans import source
from vqkernels.testing import assert_bitwise_equal, peak_memory_growth

# one that scikit-learn's own KMeans does not pass either: random draws are of rows, whatever they weigh
NOT_EQUIVALENT = "check_sample_weight_equivalence_on_dense_data"


@pytest.mark.filterwarnings("ignore")
def test_the_checks_of_scikit_learn_pass() -> None:
    results = check_estimator(
        KMeans(n_clusters=3), on_fail=None, expected_failed_checks={NOT_EQUIVALENT: "rows are drawn, not weights"}
    )
    failed = {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"}
    assert failed == {}
    assert sum(result["status"] == "passed" for result in results) > 40


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_fit_is_the_best_of_several_starts(metric: str) -> None:
    x = torch.randn(300, 4)
    model = KMeans(12, n_init=4, random_state=7, metric=metric, max_iter=5).fit(x)
    starts = [kmeans(x, 12, metric=metric, seed=7 + number, max_iter=5) for number in range(4)]
    best = min(starts, key=lambda result: result.inertia)
    assert len({result.inertia for result in starts}) > 1
    assert_bitwise_equal(model.cluster_centers_, best.centroids)
    assert (model.inertia_, model.n_iter_, model.n_features_in_) == (best.inertia, best.iterations, 4)
    indices = vqkernels.nearest_code(x, best.centroids, metric=metric).indices
    for labels in (model.labels_, model.predict(x)):
        assert_bitwise_equal(labels, indices)
    assert model.score(x) == -model.inertia_
    distance = model.transform(x)
    assert distance.shape == (300, 12)
    truth = torch.cdist(x.double(), best.centroids.double())
    if metric == "cosine":
        truth = 1 - torch.nn.functional.cosine_similarity(x.double()[:, None], best.centroids.double(), dim=2)
    # the result is float32; Euclidean distances are computed in float64 before
    assert float((distance - truth).abs().max()) <= 2.0**-23 * float(truth.max())


def test_the_same_kind_comes_back() -> None:
    x = np.random.default_rng(0).standard_normal((50, 3))
    given, tensor = KMeans(4).fit(x), KMeans(4).fit(torch.from_numpy(x))
    for name in ("cluster_centers_", "labels_"):
        assert isinstance(getattr(given, name), np.ndarray)
        assert_bitwise_equal(torch.from_numpy(getattr(given, name)), getattr(tensor, name))
    assert isinstance(given.predict(x), np.ndarray)
    assert isinstance(given.predict(torch.from_numpy(x)), torch.Tensor)
    assert given.transform(x).dtype == np.float64
    assert given.transform(x.astype(np.float32)).dtype == np.float32
    assert_bitwise_equal(
        torch.from_numpy(pickle.loads(pickle.dumps(given)).predict(x)), tensor.predict(torch.from_numpy(x))
    )


@pytest.mark.covering
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "f8", "f2", "i4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_memory_map_gives_what_its_rows_give(dtype: str, order: str, tmp_path: Path) -> None:
    """Read in place, in chunks of three rows. Oracle: the same rows in memory."""
    rows = (100 * np.random.default_rng(0).standard_normal((80, 4))).astype(dtype, order=order)
    weight = np.linspace(1, 2, 80)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "_READ", 12)
        got = KMeans(7, random_state=1).fit(mapped, sample_weight=weight)
        partial = KMeans(7, random_state=1).partial_fit(mapped)
        results = got.predict(mapped), got.transform(mapped), got.score(mapped), partial.cluster_centers_
    want = KMeans(7, random_state=1).fit(rows, sample_weight=weight)
    assert isinstance(got.labels_, np.ndarray)
    for name in ("cluster_centers_", "labels_", "inertia_", "n_iter_"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    expected = want.predict(rows), want.transform(rows), want.score(rows)
    for here, there in zip(
        results, (*expected, KMeans(7, random_state=1).partial_fit(rows).cluster_centers_), strict=True
    ):
        np.testing.assert_array_equal(here, there)
        assert np.asarray(here).dtype == np.asarray(there).dtype


@pytest.mark.parametrize(
    "call", ["fit", *(pytest.param(call, marks=pytest.mark.slow) for call in ("predict", "score"))]
)
def test_a_memory_map_stays_on_disk(call: str, tmp_path: Path) -> None:
    path, n, chunk = str(tmp_path / "rows.npy"), 1_200_000, 1 << 17
    setup = f"""
import numpy, torch, vqkernels
from vqkernels.kmeans import source
source._READ = {chunk}
torch.set_num_threads(1)
def model(n):
    data = numpy.lib.format.open_memmap({path!r}, mode="w+", dtype="float32", shape=(n, 16))
    for start in range(0, n, 10000):
        data[start : start + 10000] = numpy.random.default_rng(0).standard_normal((10000, 16), dtype="float32")
    data.flush()
    del data
    return vqkernels.KMeans(8, init=numpy.random.default_rng(1).standard_normal((8, 16)), max_iter=1)
def x():
    return numpy.load({path!r}, mmap_mode="r")
model(50000).fit(x()).{call}(x())
measured = model({n})
measured.cluster_centers_, measured.n_features_in_ = measured.init.astype("float32"), 16
"""
    # the labels; three chunks read ahead, some float64 copies of one, and what an allocator keeps
    labels = 0 if call == "score" else 8 * n
    budget = labels + chunk * (3 * 4 + 6 * 8) + (8 << 20)
    assert budget < n * 16 * 4 / 2
    assert peak_memory_growth(setup, f"measured.{call}(x())") < budget


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_what_is_trained_is_clustered_without_its_graph(method: str) -> None:
    x, centroids = torch.randn(9, 2, requires_grad=True), torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    for init in (centroids, "k-means++", "random"):
        for given in (x, x.detach().numpy()):
            found = getattr(KMeans(2, init=init, random_state=0), method)(given).cluster_centers_
            plain = init if isinstance(init, str) else init.detach()
            expected = getattr(KMeans(2, init=plain, random_state=0), method)(x.detach()).cluster_centers_
            assert not getattr(found, "requires_grad", False)
            assert_bitwise_equal(torch.as_tensor(found), expected)


def test_partial_fit_takes_the_mean_of_all_rows_so_far() -> None:
    start = torch.tensor([[0.0], [100.0]])
    model = KMeans(2, init=start)
    batches = [torch.tensor([[1.0], [3.0], [90.0]]), torch.tensor([[5.0], [102.0], [torch.nan]])]
    for batch in batches:
        model.partial_fit(batch)
    assert model.cluster_centers_.tolist() == [[3.0], [96.0]]
    assert model.labels_.tolist() == [0, 1, 0]
    assert model.n_iter_ == 2
    # goes on from a fit, as if its centroids were the start
    fitted = KMeans(2).fit(torch.cat([batches[0]] * 3))
    before = fitted.cluster_centers_
    fitted.partial_fit(before + 1.0)
    assert_bitwise_equal(fitted.cluster_centers_, before + 1.0)


def test_random_state_is_an_integer_or_a_numpy_state() -> None:
    x = torch.randn(200, 3)
    same = [KMeans(20, random_state=np.random.RandomState(5)).fit(x).cluster_centers_ for _ in range(2)]
    assert_bitwise_equal(same[0], same[1])
    assert not torch.equal(KMeans(20, random_state=1).fit(x).cluster_centers_, same[0])
    assert_bitwise_equal(KMeans(20).fit(x).cluster_centers_, KMeans(20, random_state=0).fit(x).cluster_centers_)


def test_parameters() -> None:
    model = KMeans(5, tol=0.5)
    assert repr(model) == "KMeans(n_clusters=5, tol=0.5)"
    assert KMeans(**model.set_params(n_clusters=3).get_params()).get_params() == model.get_params()
    with pytest.raises(ValueError, match=r"params: expected some of n_clusters, .* got 'k'"):
        model.set_params(k=3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: KMeans(2).predict(torch.zeros(3, 2)), AttributeError, "expected a call of fit before"),
        (lambda: KMeans(2).fit(np.zeros(3)), ValueError, "expected a 2D array"),
        (lambda: KMeans(2).fit([["a"]] * 3), ValueError, "expected numbers"),
        (lambda: KMeans(2).fit(torch.zeros(3, 2)), ValueError, "at most the 1 distinct rows"),
        (lambda: KMeans(2).fit(torch.randn(3, 2), sample_weight=[1.0]), ValueError, "sample_weight: expected shape"),
        (lambda: KMeans(2).fit(torch.randn(9, 2)).predict(torch.zeros(1, 3)), ValueError, "expecting 2 features"),
        (
            lambda: KMeans(2, n_init=0).fit(torch.randn(9, 2)),
            ValueError,
            r"n_init: expected an integer in \[1, 2\^31\)",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
