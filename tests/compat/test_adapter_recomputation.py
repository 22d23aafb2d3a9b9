"""Adapters inside an activation checkpoint. Oracle: the same training without one, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from zoo import ADAPTERS, example, make

import vqkernels.compat.vector_quantize_pytorch as vqp
from vqkernels.testing import assert_bitwise_equal


class Segment(nn.Module):
    """What is checkpointed: the adapter behind a layer."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.inner, self.options = make(name), ADAPTERS[name].options
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> tuple[Any, ...]:
        result = self.inner((x * self.scale).tanh(), **self.options)
        if not isinstance(result, tuple):
            return result.quantized.sigmoid(), result.penalty
        return result[0].sigmoid(), *(t for t in result[1:] if isinstance(t, torch.Tensor) and t.is_floating_point())


def train(module: Segment, batches: list[list[torch.Tensor]], how: Any) -> list[torch.Tensor]:
    """Outputs and gradients of every step."""
    seen: list[torch.Tensor] = []
    for group in batches:
        objective = torch.zeros(())
        for number, x in enumerate(group):
            torch.manual_seed(number)
            given = x.clone().requires_grad_()
            outputs = module(given) if how is None else checkpoint(module, given, use_reentrant=how)
            seen.extend(t.detach() for t in outputs)
            objective = objective + torch.stack([t.square().sum() for t in outputs if t.requires_grad]).sum()
        module.zero_grad()
        objective.backward()
        seen.extend(p.grad.clone() for p in module.parameters() if p.grad is not None)
    return seen


@pytest.mark.covering
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", [name for name in ADAPTERS if name != "EuclideanCodebook"])
def test_a_checkpoint_changes_nothing(name: str, reentrant: bool) -> None:
    batches = [[example(name)] for _ in range(3)]
    if not reentrant:
        # each call of a reentrant one adds to the gradients by itself, in another order
        batches.append([example(name), example(name)])
    plain, checkpointed = Segment(name), Segment(name)
    want, got = train(plain, batches, None), train(checkpointed, batches, reentrant)
    for actual, expected in zip(got, want, strict=True):
        assert_bitwise_equal(actual, expected)
    for (key, actual), expected in zip(checkpointed.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(actual, expected), key


@pytest.mark.parametrize("name", ["VectorQuantize", "LatentQuantize"])
def test_a_step_of_an_optimizer_inside_is_refused(name: str) -> None:
    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(list(parameters), lr=0.1)

    if name == "VectorQuantize":
        options = {"learnable_codebook": True, "ema_update": False, "in_place_codebook_optimizer": sgd}
        module = vqp.VectorQuantize(dim=8, codebook_size=16, **options)
    else:
        module = vqp.LatentQuantize(levels=[5, 5, 4], dim=8, in_place_codebook_optimizer=sgd)
    with pytest.raises(RuntimeError, match="in_place_codebook_optimizer: expected None inside a checkpoint"):
        checkpoint(module, torch.randn(4, 8, 8, requires_grad=True), use_reentrant=False)[0].sum().backward()
