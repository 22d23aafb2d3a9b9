"""A call that raises changes nothing. Oracle: the state before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nn_oracle import KINDS, assert_same_state, compose, make, snapshot

import vqkernels

WRONG: dict[str, Callable[[Any], Any]] = {
    "width": lambda quantizer: quantizer(torch.randn(5, 7)),
    "integers": lambda quantizer: quantizer(torch.zeros(5, 8, dtype=torch.int64)),
    "mask of floats": lambda quantizer: quantizer(torch.randn(5, 8), torch.ones(5)),
    "mask of another shape": lambda quantizer: quantizer(torch.randn(5, 8), torch.ones(4, dtype=torch.bool)),
}


@pytest.mark.parametrize("call", WRONG)
@pytest.mark.parametrize("kind", [*KINDS, "nested", "sampled", "residual"])
def test_a_wrong_argument_leaves_the_state_alone(kind: str, call: str) -> None:
    quantizer = compose(kind)
    quantizer(torch.randn(20, 8))
    before = snapshot(quantizer)
    with pytest.raises((TypeError, ValueError)):
        WRONG[call](quantizer)
    assert_same_state(snapshot(quantizer), before)


def test_a_stage_that_may_not_train_keeps_the_others_from_moving() -> None:
    matched = vqkernels.VectorQuantizer(8, 32, codebook=KINDS["matched"](32))
    quantizer = vqkernels.ResidualQuantizer([make("ema"), matched], dropout=0.5)
    before = snapshot(quantizer)
    with pytest.raises(ValueError, match="fit_codebook"):
        quantizer(torch.randn(20, 8))
    assert_same_state(snapshot(quantizer), before)


@pytest.mark.parametrize(
    "value", [None, 0.5, torch.ones(2), torch.tensor(1), torch.ones((), device="meta")], ids=repr
)
def test_a_regularizer_that_returns_no_loss(value: Any) -> None:
    part = vqkernels.Regularizer(name="mine", loss=lambda *_, **__: value, weight=0.1)
    quantizer = vqkernels.VectorQuantizer(8, 32, codebook=vqkernels.Ema(), regularizers=(part,))
    before = snapshot(quantizer)
    with pytest.raises((TypeError, ValueError), match=r"^regularizers: expected .*, got "):
        quantizer(torch.randn(20, 8))
    assert_same_state(snapshot(quantizer), before)
