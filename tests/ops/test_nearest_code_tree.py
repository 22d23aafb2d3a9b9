"""The CPU lookup's kd-tree: it must be used where it helps, and never change an answer."""

from __future__ import annotations

import pytest
import torch
from needs import needs_extension

import vqkernels
from vqkernels._core.env import ISA_CODES
from vqkernels._core.extension import METRIC_CODES, extension

pytestmark = needs_extension


def lookup(x: torch.Tensor, codebook: torch.Tensor, metric: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The C++ call itself: indices, distance, share of the pairs that were scored."""
    indices = torch.empty(len(x), dtype=torch.int64)
    distance = torch.empty(len(x))
    sizes = (len(x), 1, *codebook.shape)
    pointers = (indices.data_ptr(), distance.data_ptr())
    call = (x.data_ptr(), 0, codebook.data_ptr(), 0, *sizes, METRIC_CODES[metric], 2, ISA_CODES["auto"], 0, *pointers)
    return indices, distance, extension().nearest_code(*call)


def assert_same_as_reference(x: torch.Tensor, codebook: torch.Tensor, metric: str, rows: torch.Tensor) -> float:
    indices, distance, share = lookup(x, codebook, metric)
    truth = vqkernels.nearest_code(x[rows], codebook, metric=metric, backend="reference")
    assert torch.equal(indices[rows], truth.indices)
    assert torch.equal(distance[rows].view(torch.int32), truth.distance.view(torch.int32))
    # short calls never build a tree: all rows agree with the plain scan
    for part in range(0, len(x), 500):
        plain_indices, plain_distance, plain_share = lookup(x[part : part + 500].contiguous(), codebook, metric)
        assert plain_share == 1.0
        assert torch.equal(indices[part : part + 500], plain_indices)
        assert torch.equal(distance[part : part + 500].view(torch.int32), plain_distance.view(torch.int32))
    return share


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize(("n", "k", "d"), [(9000, 6001, 4), (20000, 10001, 2), (9001, 6000, 8)])
def test_tree_skips_codes_and_agrees(metric: str, n: int, k: int, d: int) -> None:
    # a spectrum that falls off, as that of encoder outputs does
    spread = 0.7 ** torch.arange(d)
    x, codebook = torch.randn(n, d) * spread, torch.randn(k, d) * spread
    share = assert_same_as_reference(x, codebook, metric, torch.arange(0, n, n // 150))
    assert 0 < share < 0.5


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_tree_with_hostile_data(metric: str) -> None:
    spread = 0.8 ** torch.arange(6)
    x, codebook = 100 + torch.randn(9000, 6) * spread, 100 + torch.randn(4500, 6) * spread
    codebook[100:400] = codebook[0]  # duplicates: the lowest index must win
    codebook[3], codebook[4, 2] = torch.nan, torch.inf
    x[1000:1200] = codebook[0]
    x[5], x[7, 1], x[9], x[11] = torch.nan, -torch.inf, 1e30, 0.0
    rows = torch.cat([torch.arange(0, 60), torch.arange(995, 1010), torch.arange(8900, 9000)])
    assert_same_as_reference(x, codebook, metric, rows)


def test_tree_gives_up_where_nothing_can_be_skipped() -> None:
    # isotropic in 16 dimensions: every code is about equally far
    x, codebook = torch.randn(9000, 16), torch.randn(4096, 16)
    assert assert_same_as_reference(x, codebook, "l2", torch.arange(0, 9000, 100)) > 0.5
