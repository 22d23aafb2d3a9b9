"""Rows compared with the centroids that moved alone. Oracle: a lookup in all of them, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vqkernels import kmeans, nearest_code
from vqkernels.kmeans import last_pass
from vqkernels.kmeans.data import Data
from vqkernels.kmeans.last_pass import reassign
from vqkernels.ops.nearest_code import NearestCode
from vqkernels.testing import assert_bitwise_equal


def rows_of(kind: str, n: int, d: int) -> torch.Tensor:
    if kind == "ties":
        return torch.randint(-1, 2, (n, d)).float()
    if kind == "beyond float32":
        return torch.randn(n, d, dtype=torch.float64) * 1e20  # squared distances are infinite as float32
    if kind == "beyond float64":
        return torch.randn(n, d, dtype=torch.float64) * 1e200
    return torch.randn(n, d) + (1000 if kind == "offset" else 0)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("kind", ["plain", "ties", "offset", "beyond float32", "beyond float64"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.95])
def test_reassigned_rows_are_those_of_a_lookup(kind: str, metric: str, share: float) -> None:
    x, before = rows_of(kind, 400, 4), rows_of(kind, 60, 4)
    for scale in (1e-3, 1.0):  # centroids that move a little, and anywhere
        moves = torch.rand(60) < share
        moves[0], moves[1] = True, False
        after = torch.where(moves[:, None], before + scale * (rows_of(kind, 60, 4) - before), before)
        compared = 0

        def lookup(rows: torch.Tensor, centroids: torch.Tensor) -> NearestCode:
            nonlocal compared
            compared += len(rows) * len(centroids)
            return nearest_code(rows, centroids, metric=metric)

        found = reassign(lookup, x, nearest_code(x, before, metric=metric), after, (after != before).any(dim=1))
        want = nearest_code(x, after, metric=metric)
        assert_bitwise_equal(found.indices, want.indices)
        assert_bitwise_equal(found.distance, want.distance)
        if kind == "plain" and share == 0.02:
            assert compared < 400 * 60 / 2


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("kind", ["plain", "ties"])
@pytest.mark.parametrize("where", ["memory", "memmap"])
def test_runs_are_the_bits_of_full_passes(
    where: str, kind: str, metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = rows_of(kind, 3000, 3)
    if kind == "ties":
        x[:40] += 0.25 * torch.randn(40, 3)  # there are no more than 27 distinct rows else
    weight = torch.rand(3000) + 0.5
    path = tmp_path / "rows.npy"
    np.save(path, x.numpy())
    source = x if where == "memory" else np.load(path, mmap_mode="r")
    compared: list[int] = []
    plain_lookup = Data.nearest

    def count(self: Data, rows: torch.Tensor, centroids: torch.Tensor) -> NearestCode:
        compared.append(len(rows) * len(centroids))
        return plain_lookup(self, rows, centroids)

    monkeypatch.setattr(Data, "nearest", count)
    results = []
    for few in (1.0, last_pass._FEW, 0.0):  # whenever it can be, as set, and never by those that moved
        monkeypatch.setattr(last_pass, "_FEW", few)
        start = torch.cat([x[:29], torch.full((1, 3), 1e3)])  # one is empty
        options = {"metric": metric, "init": start, "max_iter": 40, "tol": 0.0, "weight": weight}
        compared.clear()
        results.append((kmeans(source, 30, **options), sum(compared)))
    (first, _), (second, work), (full, work_of_all) = results
    for other in (first, second):
        assert_bitwise_equal(other.centroids, full.centroids)
        assert_bitwise_equal(other.count, full.count)
        assert other.history == full.history
    rows = int(x.any(dim=1).sum()) if metric == "cosine" else 3000
    assert work_of_all == rows * 30 * (full.iterations + 1)
    assert work < work_of_all
