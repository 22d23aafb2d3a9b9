"""Quantizers inside an activation checkpoint. Oracle: the same training without one, to the bit."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from nn_oracle import COMPOSED, KINDS, assert_same_state, compose, snapshot
from torch import nn
from torch.utils.checkpoint import checkpoint

import vqkernels
from vqkernels.nn import EntropyLoss, Regularizer
from vqkernels.testing import assert_bitwise_equal


class Segment(nn.Module):
    """What is checkpointed: the quantizer between two layers."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.before, self.quantizer, self.after = nn.Linear(8, 8), quantizer, nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        semantic = hasattr(getattr(self.quantizer, "table", None), "classes")
        given = {"labels": torch.arange(len(x)) % 3} if semantic else {}
        out = self.quantizer(self.before(x).tanh(), **given)
        return self.after(out.quantized).sigmoid(), out.loss, out.indices


def segment(kind: str) -> Segment:
    torch.manual_seed(5)
    if kind == "entropy":
        part = Regularizer(name="entropy", loss=EntropyLoss(temperature=0.5), weight=0.1)
        return Segment(vqkernels.VectorQuantizer(8, 16, codebook=KINDS["online-drawn"](16), regularizers=[part]))
    if kind == "semantic":
        kind_of_codes = vqkernels.SemanticClustering(num_classes=3, init_scale=1.0, label="histogram")
        return Segment(vqkernels.VectorQuantizer(8, 16, codebook=kind_of_codes))
    return Segment(compose(kind, 8, 16))


def train(module: Segment, batches: list[torch.Tensor], how: Any, together: bool) -> list[torch.Tensor]:
    """Outputs and gradients of every step; ``together``: one backward for all batches."""
    seen: list[torch.Tensor] = []

    def call(x: torch.Tensor) -> torch.Tensor:
        given = x.clone().requires_grad_()
        value, loss, indices = module(given) if how is None else checkpoint(module, given, use_reentrant=how)
        seen.extend([value.detach(), loss.detach(), indices])
        return value.square().sum() + loss

    for group in [batches] if together else [[x] for x in batches]:
        objective = torch.stack([call(x) for x in group]).sum()
        moved = snapshot(module)
        module.zero_grad()
        objective.backward()
        assert_same_state(snapshot(module), moved)
        seen.extend(p.grad.clone() for p in module.parameters() if p.grad is not None)
        with torch.no_grad():
            for p in module.parameters():
                p.sub_(0.1 * (0 if p.grad is None else p.grad))
    return seen


@pytest.mark.covering(2)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, *COMPOSED, "entropy", "semantic"])
def test_a_checkpoint_changes_nothing(kind: str, together: bool, reentrant: bool) -> None:
    plain, checkpointed = segment(kind), segment(kind)
    batches = [torch.randn(12, 8) for _ in range(4)]
    batches.append(batches[-1])  # the same once more
    want, got = train(plain, batches, None, together), train(checkpointed, batches, reentrant, together)
    for actual, expected in zip(got, want, strict=True):
        assert_bitwise_equal(actual, expected)
    assert_same_state(snapshot(checkpointed), snapshot(plain))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_second_backward_sees_the_same(reentrant: bool) -> None:
    """As adaptive weights of adversarial losses take it."""
    module = segment("ema")
    x = torch.randn(12, 8, requires_grad=True)
    value, loss, _ = checkpoint(module, x, use_reentrant=reentrant)
    gradients = []
    for _ in range(2):
        module.zero_grad()
        (value.sum() + loss).backward(retain_graph=True)
        gradients.append([p.grad.clone() for p in module.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert_bitwise_equal(first, second)


def test_checkpoints_inside_each_other() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = segment("ema-revived"), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            value, loss, _ = checkpoint(self.inner, x, use_reentrant=False)
            return self.last(value), loss

    torch.manual_seed(0)
    module = Outer()
    plain = copy.deepcopy(module)
    x = torch.randn(12, 8)
    for _ in range(3):
        module.zero_grad()
        plain.zero_grad()
        value, loss = checkpoint(module, x.clone().requires_grad_(), use_reentrant=False)
        (value.square().sum() + loss).backward()
        middle, loss, _ = plain.inner(x)
        (plain.last(middle).square().sum() + loss).backward()
        for got, want in zip(module.parameters(), plain.parameters(), strict=True):
            assert_bitwise_equal(got.grad, want.grad)
    assert_same_state(snapshot(module), snapshot(plain))


def test_a_forward_that_is_too_long_ago_is_missed() -> None:
    module = segment("ema")
    values = [checkpoint(module, torch.randn(12, 8, requires_grad=True), use_reentrant=False)[0] for _ in range(20)]
    values[-1].sum().backward()
    with pytest.raises(RuntimeError, match="checkpoint: expected the input of one of the last 16 forwards"):
        values[0].sum().backward()


def test_nothing_is_kept_without_a_checkpoint_nor_once_it_was_used() -> None:
    quantizer = compose("ema", 8, 16)
    for _ in range(3):
        quantizer(torch.randn(12, 8, requires_grad=True)).loss.backward()
    assert len(quantizer._past._kept) == 0
    for _ in range(3):
        checkpoint(quantizer, torch.randn(12, 8, requires_grad=True), use_reentrant=False).loss.backward()
    assert len(quantizer._past._kept) == 1
    for copied in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert len(copied._past._kept) == 0
