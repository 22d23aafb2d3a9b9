"""Vectors that are not finite, or so long that float32 does not hold their squared distances, take no part.

Oracle: the same training without them, to the bit.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from nn_oracle import COMPOSED, KINDS, assert_same_state, compose, snapshot

import vqkernels
from vqkernels.testing import assert_bitwise_equal

# too long in one entry alone, or with all of them
TOO_LONG = (torch.nan, torch.inf, -torch.inf, 2.0**62.01, 1e20, -3e38)
STILL = 2.0**62 / math.sqrt(8) * (1 - 2.0**-20)  # of eight such entries


def spoilt(x: torch.Tensor, value: float, every: bool) -> torch.Tensor:  # [N, 8]
    """Every other vector, and the first."""
    x = x.clone()
    x[::2, slice(None) if every else 3] = value
    return x


@pytest.mark.covering(2)
@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("value", TOO_LONG)
@pytest.mark.parametrize("kind", [*(kind for kind in KINDS), "nested", "residual"])
def test_they_leave_no_trace(kind: str, value: float, every: bool) -> None:
    options: dict[str, Any] = {"code_dim": 4} if kind in KINDS else {}
    given, clean = compose(kind, **options), compose(kind, **options)
    for _ in range(3):
        x = torch.randn(20, 8)
        results = []
        for module, rows, mask in ((given, spoilt(x, value, every), None), (clean, x, torch.arange(20) % 2 == 1)):
            module.zero_grad()
            leaf = rows.clone().requires_grad_()
            out = module(leaf, mask)
            # good vectors only
            (out.quantized[1::2].square().sum() + out.loss).backward()
            results.append([out.quantized[1::2], out.loss, leaf.grad, *(p.grad for p in module.parameters())])
            assert not bool(leaf.grad[::2].any())
            assert bool(out.quantized.isfinite().all())
        for got, want in zip(*results, strict=True):
            assert (got is None) == (want is None)
            if got is not None:
                assert_bitwise_equal(got, want)
        assert_same_state(snapshot(given), snapshot(clean))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("kind", [*KINDS, *COMPOSED])
def test_the_longest_that_take_part_leave_everything_finite(kind: str, metric: str, dtype: torch.dtype) -> None:
    quantizer = compose(kind, **({"metric": metric} if kind != "sampled" else {})).to(dtype)
    for step in range(6):
        x = torch.randn(40, 8, dtype=dtype)
        x[:10] = torch.where(torch.rand(10, 8) < 0.5, STILL, -STILL).to(dtype) * (
            0.99 if dtype == torch.bfloat16 else 1
        )
        x = x.requires_grad_()
        out = quantizer(x if step else x[:10])
        (out.quantized.sum() + out.loss).backward()
        for name, tensor in [
            *quantizer.state_dict().items(),
            *((n, p.grad) for n, p in quantizer.named_parameters()),
        ]:
            assert bool(tensor.isfinite().all()), f"step {step}: {name}"
        assert bool(out.loss.isfinite())
        assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize("value", [1e19, 1e160, 1e300])
@pytest.mark.parametrize("kind", KINDS)
def test_float64_vectors_beyond_float32(kind: str, value: float) -> None:
    given, clean = compose(kind).double(), compose(kind).double()
    x = torch.randn(20, 8, dtype=torch.float64)
    for module, rows in ((given, spoilt(x, value, every=True)), (clean, x)):
        module(rows, None if module is given else torch.arange(20) % 2 == 1)
    assert_same_state(snapshot(given), snapshot(clean))


def test_fitting_leaves_them_out() -> None:
    x = torch.randn(100, 8)
    given, clean = (compose("ema") for _ in range(2))
    given.fit_codebook(torch.cat([x, torch.full((3, 8), 1e20)]))
    clean.fit_codebook(x)
    assert_bitwise_equal(given.codebook, clean.codebook)


@pytest.mark.parametrize("anchor", ["closest", "random", "probabilistic"])
@pytest.mark.parametrize("value", [1e20, -3e38])
def test_reanchoring_leaves_them_out(anchor: str, value: float) -> None:
    codebook, x = torch.randn(16, 8), torch.randn(40, 8)
    far = torch.cat([x, torch.full((5, 8), value)])
    books = []
    for rows in (x, far):
        book, usage = codebook.clone(), torch.zeros(16)
        vqkernels.reanchor_(book, usage, rows, *vqkernels.nearest_code(rows, book), decay=0.9, anchor=anchor, seed=3)
        books.append((book, usage))
    for got, want in zip(books[1], books[0], strict=True):
        assert_bitwise_equal(got, want)


@pytest.mark.parametrize("anchor", ["closest", "probabilistic"])
def test_semantic_reanchoring_leaves_them_out_and_stays_finite(anchor: str) -> None:
    codebook, x, labels = torch.randn(16, 8), torch.randn(40, 8), torch.randint(0, 3, (45,))
    far = torch.cat([x, torch.full((5, 8), 3e38)])
    books = []
    for rows in (x, far):
        book, usage = codebook.clone(), torch.zeros(16)
        found = vqkernels.nearest_code(rows, book)
        args = labels[: len(rows)], torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
        vqkernels.semantic_reanchor_(book, usage, rows, *found, *args, decay=0.9, anchor=anchor, seed=3)
        books.append(book)
    assert_bitwise_equal(books[1], books[0])
    book = torch.full((16, 8), -3e38)
    classes = torch.full((3, 4), 3e38)
    found = vqkernels.nearest_code(x, book)
    vqkernels.semantic_reanchor_(book, torch.zeros(16), x, *found, labels[:40], classes, anchor=anchor)
    assert bool(book.isfinite().all())
