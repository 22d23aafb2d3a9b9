"""Adapters as ONNX files, and through ``torch.export`` for batches of any size. Oracle: the module itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exported import Calls, assert_same, run_onnx
from torch.utils._pytree import tree_leaves
from zoo import ADAPTERS, example, make

# one draws codes in evaluation, too; one makes a codebook for every vector, and exports with a fixed batch size only;
# one has codes that are nearly alike, and a test of its own
NAMES = [
    name for name in ADAPTERS if name not in ("taming-GumbelQuantize", "ResidualVQ-implicit", "ResidualVQ-shared")
]
INTEGERS = (torch.int64, torch.int32)
DECODERS = ("get_output_from_indices", "indices_to_codes", "decode", "get_codebook_entry")


def whole(name: str) -> Calls:
    """What a quantizer returns in evaluation, and the values of its indices."""
    module: Any = make(name)
    module(example(name), **ADAPTERS[name].options)  # with whatever a first batch brings
    module.eval()
    decoder = next((getattr(module, decoder) for decoder in DECODERS if hasattr(module, decoder)), None)

    def uses(x: torch.Tensor) -> Any:
        result = module(x, **ADAPTERS[name].options)
        if name == "encodec":
            result = (result.quantized, result.codes, result.bandwidth, result.penalty)
        if decoder is None:
            return result
        indices = next(t for t in tree_leaves(result) if isinstance(t, torch.Tensor) and t.dtype in INTEGERS)
        if name == "HierarchicalVQ":
            indices = result[1]  # one tensor per scale
        rows = () if decoder.__name__ != "get_codebook_entry" else (None,)
        return result, decoder(indices, *rows)

    return Calls(module, uses)


def assert_equally_near(
    x: torch.Tensor,  # [N, D]
    codes: torch.Tensor,  # [K, D]
    got: torch.Tensor,  # [N, L]
    want: torch.Tensor,  # [N, L]
) -> torch.Tensor:  # [N] bool
    """Indices of a residual stack differ only where rounding decides; what follows such a level is another problem.

    Returns which rows are equal throughout.
    """
    left, same = x.double(), torch.ones(len(x), dtype=torch.bool)
    for mine, theirs in zip(got.T, want.T, strict=True):
        distance = [(left - codes[index].double()).square().sum(1) for index in (mine, theirs)]
        size = left.square().sum(1) + codes.double().square().sum(1).max()
        # what D products and sums in float32, of vectors that are differences themselves, may be off in both of them
        budget = 4 * (x.shape[1] + got.shape[1] + 4) * torch.finfo(torch.float32).eps * size
        assert bool(((distance[0] - distance[1]).abs() <= budget)[same].all())
        same &= mine == theirs
        left = left - codes[theirs].double()
    return same


def test_what_is_not_equally_near_is_found() -> None:
    x, codes = torch.randn(6, 4), torch.randn(5, 4)
    want = torch.stack([torch.cdist(x, codes).argmin(1), torch.zeros(6, dtype=torch.int64)], dim=1)
    assert assert_equally_near(x, codes, want, want).all()
    twin = torch.cat([codes, codes[want[2, 0]][None]])
    other = want.clone()
    other[2] = torch.tensor([5, 4])
    assert assert_equally_near(x, twin, other, want).tolist() == [True, True, False, True, True, True]
    other[3, 1] = 1
    with pytest.raises(AssertionError):
        assert_equally_near(x, twin, other, want)


@pytest.mark.slow
def test_codes_put_on_one_vector_are_equally_near() -> None:
    """Dead codes of a shared codebook that every layer replaces by vectors of one batch are alike up to rounding."""
    name = "ResidualVQ-shared"
    calls, x = whole(name), torch.cat([example(name), example(name)[:1]])
    want = calls(x)
    got = run_onnx(calls, example(name), x)
    module: Any = calls.module
    indices = (got[1].flatten(0, 1), want[1].flatten(0, 1))
    same = assert_equally_near(x.flatten(0, 1), module.layers[0]._codebook.embed[0], *indices).view(x.shape[:2])
    assert float(same.double().mean()) > 0.8
    assert_same([got[0][same], got[2], got[3][same]], (want[0][same], want[2], want[3][same]))


@pytest.mark.parametrize("name", [n if n == "llamagen" else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_an_adapter(name: str) -> None:
    calls, x = whole(name), torch.cat([example(name), example(name)[:1]])
    assert_same(run_onnx(calls, example(name), x), calls(x))
