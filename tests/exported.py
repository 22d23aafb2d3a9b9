"""Modules as ONNX files, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from needs import import_library
from torch import nn
from torch.utils._pytree import tree_leaves

import vqkernels


class Calls(nn.Module):
    """A function that calls a module, with the module, so that its parameters are known."""

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = tree_leaves(self.function(x))
        return tuple(result for result in results if isinstance(result, torch.Tensor))


def run_onnx(calls: nn.Module, example: torch.Tensor, x: torch.Tensor) -> list[torch.Tensor]:
    """What the file of a module, exported with ``example`` for batches of any size, returns for ``x``."""
    import_library("onnxscript")
    runtime = import_library("onnxruntime")
    program = torch.onnx.export(
        calls,
        (example,),
        dynamo=True,
        custom_translation_table=vqkernels.onnx_translations(),
        dynamic_shapes=({0: torch.export.Dim("batch", min=2)},),
        verbose=False,
    )
    model = program.model_proto
    assert {node.domain for node in model.graph.node} == {""}
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    results = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return [torch.from_numpy(result) for result in results]


def assert_same(got: list[torch.Tensor], want: tuple[torch.Tensor, ...]) -> None:
    """Equal indices, and values that differ by rounding."""
    for a, b in zip(got, want, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        torch.testing.assert_close(a, b.detach(), equal_nan=True)
