"""``reanchor_`` and the codebook that uses it.

Oracle: the formulas of CVQ-VAE with the full N x K distance matrix, one code at a time, in float64.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import vqkernels
from vqkernels._core.random import random_integers, row_numbers
from vqkernels.ops.reanchor import Anchors, choose_anchors, drawn_vectors, random_vectors
from vqkernels.testing import assert_bitwise_equal, assert_within_budget


def published_step(
    codebook: torch.Tensor,  # [K, D]
    usage: torch.Tensor,  # [K]
    x: torch.Tensor,  # [N, D]
    indices: torch.Tensor,  # [N]
    anchors: torch.Tensor,  # [K, D]
    decay: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    codebook, usage, x, anchors = (t.to(dtype) for t in (codebook, usage, x, anchors))
    k = len(codebook)
    count = F.one_hot(indices, k).sum(0).to(dtype)
    usage = decay * usage + (1 - decay) * count / len(x)
    a = torch.exp(-usage * k * 10 / (1 - decay) - 1e-3)[:, None]
    return (1 - a) * codebook + a * anchors, usage


def problem(n: int = 40, k: int = 24, d: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # usage between dead and alive, so that the pull takes every value between 0 and 1
    return torch.randn(n, d), torch.randn(k, d), torch.logspace(-7, -1, k)


def closest(codebook: torch.Tensor, x: torch.Tensor, metric: str) -> torch.Tensor:
    a, b = codebook.double(), x.double()
    if metric == "l2":
        return torch.cdist(a, b).argmin(1)
    return (a @ b.T if metric == "dot" else F.normalize(a, dim=1) @ F.normalize(b, dim=1).T).argmax(1)


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@pytest.mark.parametrize("grouped", [False, True])
def test_closest_is_the_published_step(metric: str, grouped: bool) -> None:
    parts = [problem() for _ in range(2 if grouped else 1)]
    x, codebook, usage = (torch.stack(t, dim) for t, dim in zip(zip(*parts, strict=True), (1, 0, 0), strict=True))
    if not grouped:
        x, codebook, usage = x[:, 0], codebook[0], usage[0]
    indices, distance = vqkernels.nearest_code(x, codebook, metric=metric)
    book, share = codebook.clone(), usage.clone()
    vqkernels.reanchor_(book, share, x, indices, distance, decay=0.9, metric=metric)
    for group, (rows, codes, old) in enumerate(parts):
        index = indices[:, group] if grouped else indices
        anchors = rows[closest(codes, rows, metric)]
        want, plain = (
            published_step(codes, old, rows, index, anchors, 0.9, dtype) for dtype in (torch.float64, torch.float32)
        )
        got = (book[group], share[group]) if grouped else (book, share)
        for actual, truth, reference in zip(got, want, plain, strict=True):
            assert_within_budget(actual, truth, reference)


def waiting_codes(k: int) -> torch.Tensor:  # [1, K] bool
    return torch.arange(k)[None] % 3 != 1


@pytest.mark.parametrize(("n", "k"), [(40, 24), (10, 24), (1, 1), (500, 4)])
def test_random_vectors_race_for_the_codes_that_wait(n: int, k: int) -> None:
    """Oracle: the race, one vector at a time."""
    x, indices = torch.randn(n, 1, 3), torch.zeros(n, 1, dtype=torch.int64)
    indices[3::7] = -1
    waiting = waiting_codes(k)
    anchors = random_vectors(x, indices, waiting, 5)
    codes = waiting[0].nonzero().flatten().tolist()
    number = row_numbers(random_integers(5, (1,), x.device)[0], x[:, 0]).tolist()
    best: dict[int, tuple[float, int]] = {}
    for row in range(n):
        if indices[row] >= 0:
            code = codes[number[row] % len(codes)]
            best[code] = min(best.get(code, (torch.inf, n)), (number[row], row))
    assert anchors.key[0].tolist() == [best.get(code, (torch.inf, 0))[0] for code in range(k)]
    for code, (_, row) in best.items():
        assert_bitwise_equal(anchors.vectors[0, code], x[row, 0])
    assert n < 24 or len(best) > 0.5 * len(codes)


def test_random_moves_dead_codes_to_different_vectors() -> None:
    x, codebook, _ = problem(40, 24)
    indices, distance = vqkernels.nearest_code(x, codebook)
    book = codebook.clone()
    vqkernels.reanchor_(book, torch.zeros(24), x, indices, distance, decay=0.0, anchor="random", seed=1)
    moved = (book != codebook).any(dim=1) & ~torch.isin(torch.arange(24), indices)
    # a dead code keeps 1 - exp(-1e-3) of itself
    source = vqkernels.nearest_code((book - (1 - 0.999) * codebook)[moved], x).indices
    assert len(source.unique()) == len(source) > 0
    want = 0.999 * x[source] + 0.001 * codebook[moved]
    assert float((book[moved] - want).abs().max()) < 1e-5 * float(x.abs().max() + codebook.abs().max())


def test_codes_in_use_take_no_vector_from_those_that_wait() -> None:
    x, codebook, _ = problem(200, 50)
    usage = torch.full((50,), 1 / 50)
    usage[7] = 0
    anchors = choose_anchors(
        codebook[None], usage[None], x[:, None], torch.zeros(200, 1, dtype=torch.int64),
        decay=0.99, anchor="random", metric="l2", seed=0,
    )  # fmt: skip
    assert anchors.key[0].isfinite().nonzero().flatten().tolist() == [7]


def test_random_draws_every_vector_equally_often() -> None:
    x = torch.arange(10.0).reshape(10, 1, 1)
    indices = torch.zeros(10, 1, dtype=torch.int64)
    indices[0] = -1  # takes no part
    waiting = torch.ones(1, 1, dtype=torch.bool)
    drawn = [int(random_vectors(x, indices, waiting, seed).vectors) for seed in range(2000)]
    count = torch.tensor(drawn).bincount(minlength=10)
    assert count[0] == 0
    # chi-squared with 8 degrees of freedom exceeds 40 with a probability of 3e-6
    expected = 2000 / 9
    assert float(((count[1:] - expected) ** 2 / expected).sum()) < 40


@pytest.mark.parametrize("anchor", ["closest", "random", "probabilistic"])
def test_anchors_are_those_of_the_set_of_vectors(anchor: str) -> None:
    """Another order, every vector twice, and the least keys of two parts: the same anchors to the bit."""
    x, codebook = torch.randn(90, 2, 3), torch.randn(2, 40, 3)

    def anchors(rows: torch.Tensor) -> Anchors:
        indices = torch.zeros(rows.shape[:2], dtype=torch.int64)
        options: dict[str, Any] = {"decay": 0.9, "anchor": anchor, "metric": "l2", "seed": 4}
        return choose_anchors(codebook, torch.zeros(2, 40), rows, indices, **options)

    whole = anchors(x)
    found = whole.key.isfinite()
    first, second = anchors(x[:20]), anchors(x[20:])
    joined = torch.where((first.key < second.key)[..., None], first.vectors, second.vectors)
    for key, vectors in (
        anchors(x[torch.randperm(90)])[::-1],
        anchors(torch.cat([x, x]))[::-1],
        (torch.minimum(first.key, second.key), joined),
    ):
        assert_bitwise_equal(key, whole.key)
        assert_bitwise_equal(vectors[found], whole.vectors[found])


def similarity(codebook: torch.Tensor, x: torch.Tensor, metric: str) -> torch.Tensor:  # [K, N] float64
    a, b = codebook.double(), x.double()
    if metric == "l2":
        return -torch.cdist(a, b).square()
    return a @ b.T if metric == "dot" else F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_probabilistic_draws_by_softmax_over_the_vectors(metric: str) -> None:
    # many equal codes are many draws of one distribution
    draws, n = 4000, 6
    x, code = torch.randn(n, 1, 3), torch.randn(1, 3)
    indices = torch.zeros(n, 1, dtype=torch.int64)
    indices[2] = -1  # takes no part
    anchors = drawn_vectors(code.expand(1, draws, 3), x, indices, metric, seed=5)
    drawn = (anchors.vectors[0, :, None] == x[None, :, 0]).all(dim=2).long().argmax(dim=1)
    count = drawn.bincount(minlength=n)
    assert count[2] == 0
    keep = torch.arange(n) != 2
    expected = draws * similarity(code, x[keep, 0], metric)[0].softmax(0)
    # chi-squared with 4 degrees of freedom exceeds 32 with a probability of 2e-6
    assert float(((count[keep] - expected) ** 2 / expected).sum()) < 32


def test_a_draw_depends_on_the_code_the_row_and_the_seed_alone() -> None:
    x, codebook = torch.randn(300, 1, 2), torch.randn(1, 900, 2)  # more pairs than are held at a time
    indices = torch.zeros(300, 1, dtype=torch.int64)
    whole = drawn_vectors(codebook, x, indices, "l2", seed=9)
    first = drawn_vectors(codebook[:, :7], x, indices, "l2", seed=torch.tensor(9))
    assert_bitwise_equal(first.vectors, whole.vectors[:, :7])
    assert not torch.equal(drawn_vectors(codebook, x, indices, "l2", seed=8).vectors, whole.vectors)


@pytest.mark.parametrize("anchor", ["closest", "random", "probabilistic"])
def test_vectors_that_take_no_part(anchor: str) -> None:
    x, codebook, usage = problem()
    x[3, 2], x[5] = torch.nan, torch.inf
    indices, distance = vqkernels.nearest_code(x, codebook)
    indices[7:20] = -1
    book, share = codebook.clone(), usage.clone()
    vqkernels.reanchor_(book, share, x, indices, distance, decay=0.9, anchor=anchor)
    assert bool(book.isfinite().all())
    keep = (indices >= 0) & ~distance.isnan()
    expected, expected_share = codebook.clone(), usage.clone()
    args = (x[keep], indices[keep], distance[keep])
    vqkernels.reanchor_(expected, expected_share, *args, decay=0.9, anchor=anchor)
    assert_bitwise_equal(share, expected_share)
    assert_bitwise_equal(book, expected)


@pytest.mark.parametrize("anchor", ["closest", "random", "probabilistic"])
@pytest.mark.parametrize("n", [0, 3])
def test_nothing_is_written_without_a_vector(anchor: str, n: int) -> None:
    _, codebook, usage = problem()
    book, share = codebook.clone(), usage.clone()
    x = torch.full((n, 5), torch.nan)
    vqkernels.reanchor_(book, share, x, *vqkernels.nearest_code(x, book), decay=0.9, anchor=anchor)
    assert_bitwise_equal(book, codebook)
    assert_bitwise_equal(share, usage)


@pytest.mark.parametrize("anchor", ["closest", "random", "probabilistic"])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_the_module_takes_this_step(anchor: str, metric: str) -> None:
    config = vqkernels.OnlineClustering(decay=0.9, anchor=anchor)
    quantizer = vqkernels.VectorQuantizer(4, 16, codebook=config, metric=metric)
    for step in range(1, 4):
        book, usage = quantizer.table.weight.detach().clone(), quantizer.table.usage.clone()
        # squared lengths add exactly in any order, so that unit vectors have the same bits in any shape
        x = torch.randint(-99, 99, (30, 4)).float() / 64
        indices = quantizer(x).indices[:, None]
        rows = x / torch.linalg.vector_norm(x, dim=1, keepdim=True) if metric == "cosine" else x
        distance = torch.zeros(30, 1)
        options: dict[str, Any] = {"decay": 0.9, "anchor": anchor, "metric": metric, "seed": step}
        vqkernels.reanchor_(book, usage, rows[:, None], indices, distance, **options)
        assert_bitwise_equal(quantizer.table.weight.detach(), book)
        assert_bitwise_equal(quantizer.table.usage, usage)


def test_online_clustering_keeps_a_large_codebook_alive() -> None:
    # the point of the method: from a start far from the data, plain training leaves all codes but one dead
    data = torch.randn(2000, 4) + 10
    used = {}
    for name, config in {
        "learned": vqkernels.Learned(),
        "closest": vqkernels.OnlineClustering(decay=0.9),
        "random": vqkernels.OnlineClustering(decay=0.9, anchor="random"),
        "probabilistic": vqkernels.OnlineClustering(decay=0.9, anchor="probabilistic"),
    }.items():
        torch.manual_seed(0)
        quantizer = vqkernels.VectorQuantizer(4, 64, codebook=config, usage_window=20)
        optimizer = torch.optim.Adam(quantizer.parameters(), lr=1e-2)
        for step in range(60):
            batch = data[torch.arange(step * 400, (step + 1) * 400) % 2000]
            optimizer.zero_grad()
            quantizer(batch).loss.backward()
            optimizer.step()
        used[name] = float(quantizer.usage().utilization)
    assert used["learned"] < 0.1
    assert used["closest"] > 0.2  # many codes share a nearest vector and come to life one after the other
    assert used["random"] > 0.9
    assert used["probabilistic"] > 0.9


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"anchor": "nearest"}, ValueError, "anchor: expected one of closest, random, probabilistic, got 'nearest'"),
        ({"decay": 1.0}, ValueError, r"decay: expected a number in \[0, 1\), got 1.0"),
        ({"metric": "l1"}, ValueError, "metric"),
        ({"usage": torch.zeros(5)}, ValueError, "usage: expected shape"),
        ({"indices": torch.zeros(40)}, TypeError, "indices"),
        ({"distance": torch.zeros(4)}, ValueError, "distance: expected shape"),
        ({"x": torch.zeros(40, 3)}, ValueError, "x: expected"),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], message: str) -> None:
    x, codebook, usage = problem()
    indices, distance = vqkernels.nearest_code(x, codebook)
    args = {"codebook": codebook, "usage": usage, "x": x, "indices": indices, "distance": distance, "decay": 0.9}
    with pytest.raises(error, match=message):
        vqkernels.reanchor_(**{**args, **change})


@pytest.mark.parametrize("n", [0, 12])
def test_the_race_is_a_proper_operator(n: int) -> None:
    """Oracle: torch's own ``opcheck``."""
    slots = torch.tensor([5, 0])
    arguments = (torch.randn(n, 2, 4), torch.rand(n, 2) > 0.3, slots, 7, torch.tensor(3))
    torch.library.opcheck(torch.ops.vqkernels.race_rows.default, arguments)
