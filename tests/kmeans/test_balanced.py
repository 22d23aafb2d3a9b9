"""Clusters of bounded size. Oracles: scipy's assignment of rows to as many copies of each centroid as it may hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from needs import import_library, needs_extension
from torch.nn import functional as F

import vqkernels
from vqkernels import balanced_codes, kmeans, nearest_code
from vqkernels._core.extension import extension
from vqkernels.kmeans import transport
from vqkernels.kmeans.data import Data
from vqkernels.kmeans.processes import Processes
from vqkernels.kmeans.shortest_paths import Flow
from vqkernels.kmeans.source import HeldRows
from vqkernels.kmeans.transport import PLACED, Assignment, Transport
from vqkernels.testing import assert_bitwise_equal

linear_sum_assignment = import_library("scipy.optimize").linear_sum_assignment


def problem(n: int, k: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows, a third of them in a far tight blob, and some of them as codes."""
    x = torch.randn(n, d) * torch.linspace(1, 2, d)
    x[::3] = 0.1 * x[::3] + 5
    return x, x[torch.randperm(n)[:k]].clone()


def squared(x: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:  # [N, K] float64
    return torch.cdist(x.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist").square()


def best(x: torch.Tensor, codebook: torch.Tensor, bound: int) -> tuple[torch.Tensor, float]:
    """The assignment of least summed distance with at most ``bound`` rows for a code."""
    places = squared(x, codebook).repeat_interleave(bound, dim=1).numpy()
    _, taken = linear_sum_assignment(places)
    return torch.from_numpy(taken // bound), float(places[np.arange(len(x)), taken].sum())


def bound_of(n: int, k: int, share: float) -> int:
    return max(math.ceil(n / k), math.floor(share * n / k))


@pytest.mark.parametrize("share", [1.0, 1.1, 2.0, 100.0])
@pytest.mark.parametrize(("n", "k", "d"), [(103, 10, 4), (120, 40, 3), (32, 32, 2), (50, 1, 3), (9, 2, 1)])
def test_sizes_are_bounded_and_the_sum_is_least(n: int, k: int, d: int, share: float) -> None:
    x, codebook = problem(n, k, d)
    bound = bound_of(n, k, share)
    indices, distance = balanced_codes(x, codebook, max_share=share)
    assert int(indices.bincount(minlength=k).max()) <= bound
    torch.testing.assert_close(distance.double(), squared(x, codebook).gather(1, indices[:, None])[:, 0])
    free = nearest_code(x, codebook)
    _, least = best(x, codebook, bound)
    assert float(distance.double().sum()) <= least * (1 + 1e-5)
    if share == 100:
        assert_bitwise_equal(indices, free.indices)


def test_what_would_be_a_war_of_prices() -> None:
    """Nearly all rows at two codes, between which they hardly differ, and all others far away."""
    x = 1e-3 * torch.randn(300, 2)
    codebook = torch.tensor([[0.0, 0.0], [0.0, 1e-3], *([100.0 + i, 0.0] for i in range(10))])
    indices, distance = balanced_codes(x, codebook)
    assert indices.bincount().tolist() == [25] * 12
    assert float(distance.double().sum()) <= best(x, codebook, 25)[1] * 1.001


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_equal_rows_are_dealt_out(value: float) -> None:
    x, codebook = torch.full((40, 3), value), torch.tensor([[0.0, 0, 0], [1, 1, 1], [0, 0, 0], [5, 5, 5]])
    assert balanced_codes(x, codebook).indices.bincount().tolist() == [10] * 4


def test_rows_left_out() -> None:
    """Oracle: the others by themselves."""
    x, codebook = problem(100, 7, 4)
    spoiled = x.clone()
    spoiled[3, 1], spoiled[50] = torch.nan, torch.inf
    kept = spoiled.isfinite().all(dim=1)
    indices, distance = balanced_codes(spoiled, codebook)
    assert indices[~kept].tolist() == [-1, -1]
    assert distance[~kept].isnan().all()
    want = balanced_codes(x[kept], codebook)
    assert_bitwise_equal(indices[kept], want.indices)
    assert_bitwise_equal(distance[kept], want.distance)
    assert balanced_codes(x[:0], codebook).indices.shape == (0,)
    unit = balanced_codes(torch.cat([x, torch.zeros(1, 4)]), codebook, metric="cosine")
    assert int(unit.indices[-1]) == -1
    angle = 1 - F.cosine_similarity(x.double(), codebook[unit.indices[:-1]].double())
    torch.testing.assert_close(unit.distance[:-1].double(), angle, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("share", [1.0, 1.2])
def test_balanced_k_means_is_near_the_best_of_exact_assignments(share: float) -> None:
    """Oracle: three restarts of Lloyd's iteration with the least summed distance under the bound."""
    x, _ = problem(80, 5, 4)
    bound = bound_of(80, 5, share)

    def exact(seed: int) -> float:
        centroids = x[torch.randperm(80, generator=torch.Generator().manual_seed(seed))[:5]].double()
        before = math.inf
        while True:
            labels, inertia = best(x, centroids, bound)
            if inertia >= before:
                return before
            before = inertia
            centroids = torch.stack(
                [x[labels == k].double().mean(0) if (labels == k).any() else centroids[k] for k in range(5)]
            )

    least = min(exact(seed) for seed in range(3))
    result = kmeans(x, 5, max_share=share, n_init=3, max_iter=20)
    labels, distance = balanced_codes(x, result.centroids, max_share=share)
    assert int(result.count.max()) <= bound
    assert_bitwise_equal(labels.bincount(minlength=5).float(), result.count)
    assert result.inertia == pytest.approx(float(distance.double().sum()), rel=1e-12)
    assert result.inertia == result.history[-1]
    assert result.inertia <= 1.03 * least


def test_the_bits_do_not_depend_on_chunks_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = problem(150, 6, 3)
    threads = torch.get_num_threads()
    results = []
    for given, count in ((x, 1), ([x[:7], x[7:7], x[7:]], 3), (x.numpy(), 2)):
        torch.set_num_threads(count)
        results.append(kmeans(given, 6, max_share=1.0, max_iter=2, tol=0.0))
    torch.set_num_threads(threads)
    for result in results[1:]:
        assert_bitwise_equal(result.centroids, results[0].centroids)
        assert result.history == results[0].history
    assert kmeans(x, 6, metric="cosine", max_share=1.0, max_iter=1).count.max() == 25


def assigned(x: torch.Tensor, codebook: torch.Tensor, bound: int, backend: str | None = None) -> Assignment:
    data = Data(HeldRows(x), None, "l2", backend, Processes())
    return Transport(data, bound).assign(codebook)


@pytest.mark.parametrize("listed", [2, 5, 32])
@pytest.mark.parametrize("share", [1.0, 1.3])
def test_the_kernel_finds_the_paths_of_its_plain_form(
    share: float, listed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracles: the plain form, to the bit, and scipy. Short lists are cut off and go stale."""
    monkeypatch.setattr(transport, "_LISTED", listed)
    monkeypatch.setattr(transport, "_ENTRIES", 1)
    x, codebook = problem(360, 20, 5)
    x[20:60] = x[20]
    bound = bound_of(360, 20, share)
    found, want = assigned(x, codebook, bound), assigned(x, codebook, bound, "reference")
    assert_bitwise_equal(found.labels, want.labels)
    assert_bitwise_equal(found.prices, want.prices)
    assert int(found.labels.bincount().max()) <= bound
    total = float(squared(x, codebook).gather(1, found.labels[:, None]).sum())
    assert total <= best(x, codebook, bound)[1] * (1 + 1e-5)


def test_the_length_of_a_code_makes_no_difference_to_cosine() -> None:
    x, codebook = problem(90, 8, 3)
    want = balanced_codes(x, codebook, metric="cosine")
    assert_bitwise_equal(balanced_codes(x, codebook * 2.0**-60, metric="cosine").indices, want.indices)


def test_the_prices_prove_the_assignment() -> None:
    """No row is better off elsewhere, and room is only where prices are lowest: then no assignment is better."""
    x, codebook = problem(2000, 25, 6)
    labels, prices = assigned(x, codebook, 90)
    total = squared(x, codebook) + prices
    paid = total.gather(1, labels[:, None])[:, 0]
    assert float((paid - total.amin(dim=1)).max()) <= 1e-5 * float(paid.max())
    assert prices[labels.bincount(minlength=25) < 90].tolist() == [0.0] * int(
        (labels.bincount(minlength=25) < 90).sum()
    )
    assert (labels.bincount(minlength=25) < 90).any()


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_extension), False])
def test_equal_rows_move_together(compiled: bool) -> None:
    """A path for each code with room, not for each row."""
    n, k = 400, 4
    codes = torch.arange(k, dtype=torch.int32).expand(n, k).contiguous()
    cost = torch.tensor([0.0, 1, 3, 7], dtype=torch.float64).expand(n, k).contiguous()
    place, spare = torch.full((n,), -1, dtype=torch.int32), torch.zeros(k, dtype=torch.int64)
    prices, reached = torch.zeros(k, dtype=torch.float64), torch.zeros(k, dtype=torch.uint8)
    state = (codes, cost, place, spare, prices, reached)
    if compiled:
        pointers = [tensor.data_ptr() for tensor in state]
        flow = extension().Transport(*pointers[:2], n, k, k, n // k, *pointers[2:])
        assert extension().transport_run(flow, k - 1) == PLACED
    else:
        assert Flow(n // k, *state).run(k - 1) == PLACED
    assert place.bincount().tolist() == [n // k] * k
    assert (prices - prices[-1]).tolist() == pytest.approx([7.0, 6.0, 4.0, 0.0], abs=1e-9)


def test_many_equal_rows_among_others() -> None:
    """They want the same codes at every price, and may not all go there at once."""
    x, codebook = torch.randn(3000, 8), torch.randn(60, 8)
    x[::3] = 0
    labels, prices = assigned(x, codebook, 50)
    assert labels.bincount().tolist() == [50] * 60
    total = squared(x, codebook) + prices
    paid = total.gather(1, labels[:, None])[:, 0]
    assert float((paid - total.amin(dim=1)).max()) <= 1e-5 * float(paid.max())


def test_equal_codes_beyond_every_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_LISTED", 4)
    monkeypatch.setattr(transport, "_ENTRIES", 1)
    x = torch.zeros(60, 2)
    codebook = torch.cat([torch.zeros(20, 2), torch.full((10, 2), 3.0)])
    assert balanced_codes(x, codebook).indices.bincount().tolist() == [2] * 30


@pytest.mark.parametrize("scale", [1e-25, 1e12, 1e17])
def test_numbers_at_the_ends_of_float32(scale: float) -> None:
    """Oracle: the same rows where no square is far from 1."""
    x, codebook = problem(200, 11, 3)
    exponent = round(math.log2(scale))
    found = balanced_codes(x * 2.0**exponent, codebook * 2.0**exponent)
    assert_bitwise_equal(found.indices, balanced_codes(x, codebook).indices)


def test_rows_that_are_asked_first_are_as_scarce() -> None:
    """The same share of the rows and of the places, whichever process has them."""
    data = [Data(HeldRows(torch.arange(n).double()[:, None]), None, "l2", None, Processes()) for n in (1000, 611)]
    whole = Transport(data[0], 100)
    some = whole.sample()
    assert (some.capacity, some.total, len(some.rows)) == (12, 120, 120)
    assert some.rows.flatten().diff().tolist().count(8.0) > 70
    rest = Transport(data[1], 100)
    rest.first, rest.total = 389, 1000
    later = rest.sample()
    assert (later.first, later.total) == (120 - len(later.rows), 120)
    assert_bitwise_equal(later.rows + 389, some.rows[later.first :])
    for total, capacity in ((200, 19), (611, 77), (9, 8)):
        odd = Transport(Data(HeldRows(torch.zeros(total, 1)), None, "l2", None, Processes()), capacity).sample()
        assert len(odd.rows) == odd.total


def _refused(**options: Any) -> Any:
    return lambda: kmeans(torch.randn(9, 2), 3, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (_refused(max_share=0.5), r"max_share: expected .*1.*, got 0.5"),
        (_refused(max_share=2, weight=torch.ones(9)), "weight: expected None with max_share=2, got Tensor"),
        (_refused(max_share=1, batch_size=3), "batch_size: expected None with max_share=1, got int"),
        (lambda: balanced_codes(torch.randn(2, 3, 4), torch.randn(3, 4)), r"x: expected \[N, D\]"),
        (lambda: balanced_codes(torch.randn(2, 3), torch.randn(3, 4)), "x: expected"),
        (
            lambda: balanced_codes(torch.randn(4, 1), torch.tensor([[0.0], [1e30], [math.nan]])),
            r"codebook: expected finite codes no longer than 2\^62, got 2 that are not",
        ),
        (lambda: balanced_codes(torch.randn(4, 2), torch.zeros(3, 2), metric="cosine"), "2.62 and not zero, got 3"),
    ],
)
def test_what_does_not_fit_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_residual_k_means_is_k_means_level_by_level(tmp_path: Any) -> None:
    """Oracle: a loop over kmeans, lookups and differences."""
    x = torch.randn(300, 5)
    x[11, 2] = torch.nan
    np.save(tmp_path / "x.npy", x.numpy())
    sizes = [8, 5, 3]
    left, columns, levels = x.clone(), [], []
    for size in sizes:
        levels.append(kmeans(left, size, max_iter=5, seed=1))
        columns.append(nearest_code(left, levels[-1].centroids).indices)
        left = left - levels[-1].centroids[columns[-1]]
    for given in (x, str(tmp_path / "x.npy"), [x[:100], x[100:]]):
        result = vqkernels.residual_kmeans(given, sizes, max_iter=5, seed=1)
        for got, want in zip(result.centroids, levels, strict=True):
            assert_bitwise_equal(got, want.centroids)
        assert result.inertia == tuple(level.inertia for level in levels)
        kept = torch.arange(300) != 11
        assert_bitwise_equal(result.indices[kept], torch.stack(columns, dim=1)[kept])
        assert result.indices[11].tolist() == [-1] * 3
    again = vqkernels.residual_kmeans(x, sizes, init=[level.centroids for level in levels], max_iter=0)
    assert_bitwise_equal(again.indices, result.indices)
    with pytest.raises(ValueError, match="init: expected centroids for 3 levels, got 1"):
        vqkernels.residual_kmeans(x, sizes, init=[levels[0].centroids])
    with pytest.raises(ValueError, match="num_clusters: expected one number for each level, got none"):
        vqkernels.residual_kmeans(x, [])


def test_levels_of_bounded_clusters() -> None:
    x = torch.randn(90, 3)
    result = vqkernels.residual_kmeans(x, [4, 6], max_share=1.0, max_iter=3)
    for column, count, size in zip(result.indices.T, result.count, (23, 15), strict=True):
        assert_bitwise_equal(column.bincount().float(), count)
        assert count.max() <= size
    value = sum(c[i] for c, i in zip(result.centroids, result.indices.T, strict=True))
    assert float((x - value).double().square().sum()) == pytest.approx(result.inertia[-1], rel=1e-5)


def test_suffixes_make_ids_unique() -> None:
    """Oracle: a dictionary that counts."""
    indices = torch.randint(3, (200, 3))
    indices[7, 1] = -1
    seen: dict[tuple[int, ...], int] = {}
    want = []
    for codes in indices.tolist():
        if -1 in codes:
            want.append([-1] * 4)
            continue
        want.append([*codes, seen.setdefault(tuple(codes), 0)])
        seen[tuple(codes)] += 1
    found = vqkernels.semantic_ids(indices)
    assert found.ids.tolist() == want
    assert found.num_unique == len(seen)
    assert found.largest == max(seen.values())
    assert found.collision_rate == sum(n for n in seen.values() if n > 1) / 199
    assert len(found.ids[found.ids[:, 0] >= 0].unique(dim=0)) == 199
    assert vqkernels.semantic_ids(indices[:0])[1:] == (0, 0.0, 0)
    with pytest.raises(ValueError, match=r"indices: expected \[N, L\], got shape \[4\]"):
        vqkernels.semantic_ids(torch.zeros(4, dtype=torch.int64))
