"""Adapters as ONNX files, and through ``torch.export`` for batches of any size. Oracle: the module itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exported import Calls, assert_same, run_onnx
from torch.utils._pytree import tree_leaves
from zoo import ADAPTERS, example, make

# one draws codes in evaluation, too; one makes a codebook for every vector, and exports with a fixed batch size only
NAMES = [name for name in ADAPTERS if name not in ("taming-GumbelQuantize", "ResidualVQ-implicit")]
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


@pytest.mark.parametrize("name", [n if n == "llamagen" else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_an_adapter(name: str) -> None:
    calls, x = whole(name), torch.cat([example(name), example(name)[:1]])
    assert_same(run_onnx(calls, example(name), x), calls(x))
