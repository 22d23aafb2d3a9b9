"""Quantizers of codecs and image tokenizers, replaced, as ONNX files: encode and decode. Oracle: PyTorch.

Vectors and codes hold no near ties.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import hf_models
import pytest
import test_codecs
import torch
from exported import Calls, assert_same, run_onnx

from vqkernels import replace_quantizers
from vqkernels.compat.seed_voken import LFQ, IndexPropagationQuantize

DEFAULT = ("speechtokenizer", "JanusVQVAEVectorQuantizer")


def cases(names: Any) -> list[Any]:
    return [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", cases(test_codecs.CASES))
def test_a_stack_of_a_codec(name: str) -> None:
    case, stack = test_codecs.CASES[name], test_codecs.make(name).eval()
    replace_quantizers(stack)
    if name == "moshi":
        # as it makes them of its sums when first asked
        for path in case.inside:
            stack.get_submodule(path).embedding  # noqa: B018

    def uses(x: torch.Tensor) -> Any:
        codes = case.codes(stack, x)
        return codes, case.back(stack, codes)

    calls, x = Calls(stack, uses), torch.randn(3, 8, 40)
    assert_same(run_onnx(calls, x[:2], x), calls(x))


def decode(module: Any, indices: torch.Tensor) -> torch.Tensor:
    """Values of indices, by the method of a codebook or else by its table."""
    if hasattr(module, "decode"):
        value: torch.Tensor = module.decode(indices)
        return value
    return torch.nn.functional.embedding(indices, hf_models.table(module))


@pytest.mark.parametrize("name", cases(hf_models.CASES))
def test_a_quantizer_of_transformers(name: str) -> None:
    (original, x), *_ = hf_models.ran(name).calls
    _, axis = hf_models.lookup(name)
    module = copy.deepcopy(original)
    replace_quantizers(module)
    rows = x.movedim(axis, -1).flatten(0, -2)

    def uses(rows: torch.Tensor) -> Any:
        indices = hf_models.ask(name, module, rows)
        return indices, decode(module, indices)

    calls = Calls(module, uses)
    assert len(rows) > 9
    assert_same(run_onnx(calls, rows[:9], rows), calls(rows))


SEED_VOKEN: dict[str, Callable[[], Any]] = {
    "LFQ": lambda: LFQ(dim=6, codebook_size=64),
    "LFQ-factorized": lambda: LFQ(dim=6, codebook_size=64, token_factorization=True, factorized_bits=[2, 4]),
    "IBQ": lambda: IndexPropagationQuantize(32, 6),
    "IBQ-entropies": lambda: IndexPropagationQuantize(32, 6, use_entropy_loss=True, entropy_temperature=0.5),
}


@pytest.mark.parametrize("name", cases(SEED_VOKEN))
def test_a_quantizer_of_seed_voken(name: str) -> None:
    torch.manual_seed(1)
    quantizer = SEED_VOKEN[name]().eval()

    def uses(x: torch.Tensor) -> Any:
        value, loss, indices = quantizer(x)
        if name.startswith("IBQ"):
            return value, loss, indices[2], quantizer.get_codebook_entry(indices[2], None)
        if isinstance(indices, torch.Tensor):
            return value, loss, indices, quantizer.decode(indices[:, None])
        maps = [part.reshape(x.shape[0], -1) for part in indices]
        sizes = zip(maps, quantizer.factorized_bits, ("pre", "post"), strict=True)
        entry, places = quantizer.get_codebook_entry, (x.shape[0], *x.shape[2:])
        return value, loss, indices, [entry(part, (*places, bits), order) for part, bits, order in sizes]

    calls, x = Calls(quantizer, uses), torch.randn(4, 6, 4, 5)
    assert_same(run_onnx(calls, x[:2], x), calls(x))
