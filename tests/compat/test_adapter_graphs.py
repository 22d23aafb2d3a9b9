"""Adapters built without data, traced and saved. Oracle: the module built and called the usual way."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from zoo import ADAPTERS, call, example, make

from vqkernels.testing import assert_bitwise_equal

# draws codes in evaluation, too
_RANDOM = ("taming-GumbelQuantize",)


def poisoned(tensor: torch.Tensor) -> torch.Tensor:
    """What to_empty gives in the worst case."""
    empty = torch.zeros(tensor.shape, dtype=tensor.dtype)
    return empty.fill_(torch.nan if tensor.is_floating_point() else tensor.dtype != torch.bool and 77)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_module_built_without_data_has_all_it_needs_once_it_is_loaded(name: str) -> None:
    built = make(name)
    call(built, name, example(name))  # with whatever a first batch brings
    with torch.device("meta"):
        module = make(name)
    module._apply(poisoned)
    module.load_state_dict(built.state_dict())
    x = example(name)
    for training in (False, True):
        built.train(training), module.train(training)
        for got, want in zip(call(module, name, x), call(built, name, x), strict=True):
            assert_bitwise_equal(got.detach(), want.detach())
    for (key, got), want in zip(module.named_buffers(), built.buffers(), strict=True):
        assert torch.equal(got, want), key


class Quantized(nn.Module):
    """Nothing but the values, behind a layer whose weights ask for a gradient."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.options, self.inner = ADAPTERS[name].options, make(name)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.inner(x * self.scale, **self.options)
        return result[0] if isinstance(result, tuple) else result.quantized


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name not in _RANDOM])
def test_a_traced_module_can_be_saved_and_takes_other_batches(name: str) -> None:
    module = Quantized(name)
    module(example(name))
    module.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, example(name))
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        loaded: Any = torch.jit.load(file)
    x = torch.cat([example(name), example(name)[:1]])
    given = x.clone().requires_grad_()
    want = module(given)
    assert_bitwise_equal(loaded(x).detach(), want.detach())


# a number of layers that is drawn decides what runs
_ONE_GRAPH = [name for name in ADAPTERS if name != "ResidualVQ-projected"]
# encodec is compiled in test_encodec, too
_QUICK = ("VectorQuantize-entropy", "VectorQuantize-affine", "taming-EMAVectorQuantizer", "llamagen")


@pytest.mark.parametrize("name", [n if n in _QUICK else pytest.param(n, marks=pytest.mark.slow) for n in _ONE_GRAPH])
def test_a_training_step_is_one_graph(name: str) -> None:
    torch._dynamo.reset()  # graphs of other tests count against the limit of this one
    eager, x = make(name), example(name)
    call(eager, name, x)  # with its start from data
    module = copy.deepcopy(eager)
    results = []
    for step in (eager, torch.compile(module, fullgraph=True, backend="eager")):
        given = x.clone().requires_grad_()
        torch.manual_seed(2)
        result = step(given, **ADAPTERS[name].options)
        quantized = result[0] if isinstance(result, tuple) else result.quantized
        if quantized.requires_grad:
            quantized.square().sum().backward()
        results.append([quantized.detach(), given.grad])
    for want, got in zip(*results, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want)
    for (key, got), want in zip(module.state_dict().items(), eager.state_dict().values(), strict=True):
        torch.testing.assert_close(got, want, msg=key)
