"""Nearest codes found by lower bounds of groups of codes. Oracle: the lookup in all of them, to the bit; the bounds
beside distances in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from needs import needs_extension
from variants import processor_isas

from vqkernels import nearest_code
from vqkernels._core.extension import extension
from vqkernels.kmeans.bounds import Bounded, neighbours
from vqkernels.testing import assert_bitwise_equal

pytestmark = needs_extension


def low_rank(n: int, d: int) -> torch.Tensor:
    return torch.randn(n, max(1, d // 8)) @ torch.randn(max(1, d // 8), d) + 0.1 * torch.randn(n, d)


def some(kind: str, n: int, d: int) -> torch.Tensor:
    """Rows, the last of them where centroids start."""
    if kind == "ties":
        return torch.randint(-1, 2, (n, d)).float()
    if kind == "near ties":
        return torch.randint(-1, 2, (n, d)) + 2.0 ** torch.randint(-24, -20, (n, d))
    if kind == "offset":
        return low_rank(n, d) + 1e4
    if kind == "huge":
        return low_rank(n, d) * 1e18
    if kind == "tiny":
        return low_rank(n, d) * 1e-42
    if kind == "far":  # centroids are too small for the scan to tell them apart
        return torch.cat([1e20 * torch.randn(n // 2, d), 1e-3 * torch.randn(n - n // 2, d)])
    if kind == "mixture":
        return 4 * torch.randn(20, d)[torch.randint(20, (n,))] + torch.randn(n, d)
    return low_rank(n, d)


def moves(kind: str, k: int, d: int, start: torch.Tensor) -> Iterator[torch.Tensor]:
    """Centroids as they move, from pass to pass."""
    now = start
    for scale in (0.1, 1e-3, 0.0, 1e-3, 1e-7):
        now = now + scale * torch.rand(k, 1) * (some(kind, k, d) - now)
        now[: k // 8] = start[: k // 8]  # some stay
        if scale == 0.1 and k > 3:
            now[k // 2] = now[k - 1]  # two are one
        if scale == 1e-3:
            now[k // 3] = start[torch.randint(k, ())]  # one that was empty goes far
        yield now.clone()


SHAPES = [(5, 1), (40, 3), (16, 17), (100, 64), (20, 513)]
KINDS = ["low rank", "mixture", "ties", "near ties", "offset", "huge", "tiny", "far"]


@pytest.mark.parametrize("isa", processor_isas())
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_those_of_a_lookup_and_bounds_are_true(
    kind: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    for k, d in SHAPES:
        rows = some(kind, 100 + k, d)
        x, start = rows[:100], rows[-k:]
        bounded, labels = Bounded(len(x), start), torch.zeros(len(x), dtype=torch.int64)
        for centroids in moves(kind, k, d, start):
            want = nearest_code(x, centroids)
            bounded.move(centroids)
            found = bounded.nearest(x, labels, 0)
            assert_bitwise_equal(found.indices, want.indices)
            assert_bitwise_equal(found.distance, want.distance)
            labels = found.indices
            assert_below(bounded, x, centroids)


def assert_below(bounded: Bounded, x: torch.Tensor, centroids: torch.Tensor) -> None:
    """No centroid of a group is nearer than the bound says."""
    apart = torch.linalg.vector_norm(x[:, None].double() - centroids.double(), dim=2)  # [n, K]
    for number, some_of in enumerate(bounded.order.long().split(extension().group_size(bounded.isa))):
        least = apart[:, some_of].amin(dim=1) * (1 + 1e-12)
        assert bool((bounded.lower[:, number].double() <= least).all())


@pytest.mark.parametrize("isa", processor_isas())
def test_codes_that_only_float64_tells_apart(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    for d in (17, 130):
        start = torch.randn(100, d)
        x, labels = 1e-6 * torch.randn(100, d), torch.zeros(100, dtype=torch.int64)
        bounded = Bounded(len(x), start)
        for _ in range(3):
            # on a sphere around all rows
            centroids = torch.nn.functional.normalize(start + 1e-3 * torch.randn(100, d))
            want = nearest_code(x, centroids)
            bounded.move(centroids)
            found = bounded.nearest(x, labels, 0)
            assert_bitwise_equal(found.indices, want.indices)
            assert_bitwise_equal(found.distance, want.distance)
            labels = found.indices


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_neither_threads_nor_halves_change_a_bit(dtype: torch.dtype, threads: int) -> None:
    x, start = low_rank(3000, 32).to(dtype), low_rank(50, 32)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        bounded, labels = Bounded(len(x), start), torch.zeros(len(x), dtype=torch.int64)
        for centroids in moves("low rank", 50, 32, start):
            want = nearest_code(x, centroids)
            bounded.move(centroids)
            parts = [
                bounded.nearest(x[first : first + 999], labels[first : first + 999], first)
                for first in range(0, 3000, 999)
            ]
            labels = torch.cat([part.indices for part in parts])
            assert_bitwise_equal(labels, want.indices)
            assert_bitwise_equal(torch.cat([part.distance for part in parts]), want.distance)
    finally:
        torch.set_num_threads(before)


def test_neighbours_is_an_order_of_near_ones() -> None:
    line = torch.arange(40.0)[torch.randperm(40), None] * torch.ones(3)
    order = neighbours(line, 16)
    assert sorted(order.tolist()) == list(range(40))
    for part in order.split(16):  # each half from one end or the other, as roundings have it
        run = line[part, 0].sort().values
        assert run[-1] - run[0] == len(part) - 1
    for alike in (torch.zeros(40, 3), torch.full((40, 3), 1e38)):
        assert sorted(neighbours(alike, 16).tolist()) == list(range(40))
