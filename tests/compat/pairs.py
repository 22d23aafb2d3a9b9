"""An adapter and its original side by side, on the same inputs and random numbers."""

from __future__ import annotations

import copy
import importlib
from typing import Any, NamedTuple

import torch
from needs import import_library
from rounding import farthest, in_their_last_bits
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vqkernels.compat.vector_quantize_pytorch as adapters
from vqkernels.testing import assert_bitwise_equal, assert_within_budget

originals = import_library("vector_quantize_pytorch")


class Largest(TorchDispatchMode):
    """The size of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        self.size = max(self.size, *(part.numel() for part in tree_leaves(out) if isinstance(part, torch.Tensor)), 0)
        return out


class Outcome(NamedTuple):
    """What a call returned, flattened, and the gradients of a random combination of its floating point parts."""

    outputs: list[torch.Tensor]
    gradients: list[torch.Tensor | None]


def build(name: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    """The adapter and its original, built from one seed."""
    built = []
    for library in (adapters, originals):
        torch.manual_seed(1)
        built.append(getattr(library, name)(**options))
    return built[0], built[1]


def in_double(module: nn.Module) -> nn.Module:
    """The truth: a copy that computes in float64 throughout."""
    exact = copy.deepcopy(module).double()
    for part in exact.modules():
        if hasattr(part, "force_quantization_f32"):
            part.force_quantization_f32 = False
    return exact


def flatten(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, dict):
        return [tensor for key in sorted(result) for tensor in flatten(result[key])]
    return [tensor for part in result for tensor in flatten(part)]


def call(module: nn.Module, x: torch.Tensor, only_first: bool, **options: Any) -> Outcome:
    """Forward and backward; ``only_first`` leaves all outputs but one out of the objective."""
    module.zero_grad()
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(2)
    outputs = flatten(module(x, **options))
    torch.manual_seed(3)
    terms = [(t * torch.randn(t.shape).to(t.dtype)).sum() for t in outputs if t.is_floating_point()]
    objective = terms[0] if only_first else torch.stack(terms).sum()
    if objective.requires_grad:
        objective.backward()
    return Outcome(outputs, [x.grad, *(p.grad for p in module.parameters())])


def assert_same_results(
    adapter: nn.Module, original: nn.Module, x: torch.Tensor, only_first: bool = False, **options: Any
) -> None:
    """Integers are equal; floating point outputs and gradients as near to float64 truth as the original's."""
    moved = [call(copy.deepcopy(original), some, only_first, **options) for (some,) in in_their_last_bits([x])]
    actual, reference = (call(module, x, only_first, **options) for module in (adapter, original))
    truth = call(in_double(original), x.double(), only_first, **options)
    assert len(actual.outputs) == len(reference.outputs)
    for number, (got, plain, exact) in enumerate(zip(actual.outputs, reference.outputs, truth.outputs, strict=True)):
        assert got.dtype == plain.dtype
        runs = [plain, *(run.outputs[number] for run in moved)]
        if not got.is_floating_point():
            # the references too: a budget is for rounding, not for other codes
            for run in runs:
                assert_bitwise_equal(got, run)
        else:
            # sums and means of terms of size 1, each with its own rounding
            shifted = farthest(exact + 1.0, [run + 1 for run in runs])
            assert_within_budget(got + 1, exact.double() + 1, shifted, factor=4)
    for number, got in enumerate(actual.gradients):
        plain, exact = reference.gradients[number], truth.gradients[number]
        assert (got is None) == (plain is None) == (exact is None)
        if got is not None and plain is not None and exact is not None:
            runs = [plain, *(run.gradients[number] for run in moved)]
            scale = 1.0 if not exact.any() else float(exact.abs().max())
            shifted = farthest(exact / scale + 1, [run / scale + 1 for run in runs])
            assert_within_budget(got / scale + 1, exact / scale + 1, shifted, factor=4)


def submodule(name: str) -> Any:
    """A submodule of the original."""
    return importlib.import_module(f"vector_quantize_pytorch.{name}")
