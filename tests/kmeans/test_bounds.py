"""Runs of k-means with bounds of distances. Oracle: runs without, to the bit."""

from __future__ import annotations

import pytest
import torch
from needs import needs_extension

from vqkernels import kmeans
from vqkernels._core.env import bounds_bytes
from vqkernels.kmeans import bounds
from vqkernels.kmeans.bounds import Bounded, Bounds
from vqkernels.kmeans.data import Chunk
from vqkernels.ops.nearest_code import NearestCode
from vqkernels.testing import assert_bitwise_equal

pytestmark = needs_extension


def low_rank(n: int, d: int) -> torch.Tensor:
    return torch.randn(n, max(1, d // 8)) @ torch.randn(max(1, d // 8), d) + 0.1 * torch.randn(n, d)


def some(kind: str, n: int, d: int) -> torch.Tensor:
    if kind == "ties":
        return torch.randint(-1, 2, (n, d)).float()
    if kind == "mixture":
        return 4 * torch.randn(20, d)[torch.randint(20, (n,))] + torch.randn(n, d)
    return low_rank(n, d) * (1e18 if kind == "huge" else 1)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each chunk of each pass was looked up by bounds; few rows are enough."""
    monkeypatch.setattr(bounds, "_FEWEST", 1)
    monkeypatch.setattr(bounds, "_SAMPLED", 8)
    monkeypatch.setattr(bounds, "_SETTLED", 1)
    asked: list[bool] = []
    plain = Bounds.nearest

    def nearest(self: Bounds, chunk: Chunk, before: torch.Tensor) -> NearestCode | None:
        found = plain(self, chunk, before)
        asked.append(found is not None)
        return found

    monkeypatch.setattr(Bounds, "nearest", nearest)
    return asked


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["low rank", "mixture", "ties", "huge"])
def test_runs_are_the_same_with_and_without(
    kind: str, weighted: bool, used: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = some(kind, 1200, 20)
    weight = torch.rand(1200) + 0.5 if weighted else None
    start = torch.cat([x[:39], 100 * x[:1]])  # one is empty
    results = []
    for costs in ([0.0], [0.0, 0.0, 2.0, 2.0], [2.0]):  # always, on and off, never
        asked = iter(range(1 << 20))
        monkeypatch.setattr(Bounded, "cost", lambda self, costs=costs, asked=asked: costs[next(asked) % len(costs)])
        used.clear()
        results.append(kmeans(x, 40, init=start, weight=weight, max_iter=8, tol=0.0))
        assert any(used) == (costs != [2.0])
        assert all(used[1:]) == (costs == [0.0])
    first, *others = results
    for other in others:
        assert_bitwise_equal(other.centroids, first.centroids)
        assert_bitwise_equal(other.count, first.count)
        assert other.history == first.history


def test_they_are_used_where_they_pay_and_nowhere_else(used: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    scored = []
    begin = Bounds.begin

    def record(self: Bounds, centroids: torch.Tensor, changed: torch.Tensor | None) -> None:
        if self.all is not None:
            scored.append(self.all.scored)
        begin(self, centroids, changed)

    monkeypatch.setattr(Bounds, "begin", record)
    monkeypatch.setattr(bounds, "_plain_cost", lambda num_centroids, dim: 1.0)  # on every processor
    x = low_rank(8000, 128)
    kmeans(x, 400, init=x[:400], max_iter=12, tol=0.0)
    assert not any(used[:2])
    assert sum(used) > 4
    assert min(scored) < 0.3 * 8000 * 400

    used.clear()
    x = torch.rand(3000, 64)
    kmeans(x, 200, init=x[:200], max_iter=6, tol=0.0)
    assert not any(used)


@pytest.mark.parametrize("reason", ["memory", "metric", "float64", "short", "backend", "few passes", "few rows"])
def test_where_they_are_not_kept(reason: str, used: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bounded, "cost", lambda self: 0.0)
    x = low_rank(600, 32)
    options = {"init": x[:20], "max_iter": 3, "tol": 0.0}
    kmeans(x, 20, **options)
    assert any(used)
    used.clear()
    if reason == "memory":
        monkeypatch.setenv("VQKERNELS_BOUNDS_MIB", "0")
    elif reason == "metric":
        options["metric"] = "cosine"
    elif reason == "float64":
        x = x.double()
    elif reason == "short":
        x, options["init"] = x[:, :16], x[:20, :16]
    elif reason == "backend":
        options["backend"] = "reference"
    elif reason == "few passes":
        options["max_iter"] = 0
    else:
        monkeypatch.setattr(bounds, "_FEWEST", x.numel() + 1)
    kmeans(x, 20, **options)
    assert used
    assert not any(used)


def test_a_setting_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQKERNELS_BOUNDS_MIB", "some")
    with pytest.raises(ValueError, match=r"^VQKERNELS_BOUNDS_MIB: expected a number of MiB, 0 or more, got 'some'"):
        bounds_bytes()
