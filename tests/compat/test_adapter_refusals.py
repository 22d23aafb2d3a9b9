"""A call of an adapter that raises changes nothing. Oracle: the state before it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from zoo import ADAPTERS, make

BY_INDEX: dict[str, Any] = {
    "shape": torch.zeros(4, 9, dtype=torch.int64),
    "range": torch.full((4, 10), 16),
    "floats": torch.zeros(4, 10),
}
WEIGHTS: dict[str, Any] = {"tensor": torch.ones(5), "function": lambda total, count: torch.ones(3, 16)}


@pytest.mark.parametrize("given", BY_INDEX)
@pytest.mark.parametrize("name", ["VectorQuantize", "VectorQuantize-affine", "VectorQuantize-kmeans"])
def test_indices_that_do_not_fit(name: str, given: str) -> None:
    assert_refused(name, indices=BY_INDEX[given])


@pytest.mark.parametrize("given", BY_INDEX)
def test_indices_of_a_stack_that_do_not_fit(given: str) -> None:
    assert_refused("ResidualVQ", indices=torch.stack([BY_INDEX[given]] * 3, dim=-1))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_weights_that_do_not_fit(weight: str) -> None:
    assert_refused("VectorQuantize", ema_update_weight=WEIGHTS[weight])


@pytest.mark.parametrize("name", ["VectorQuantize", "VectorQuantize-kmeans", "ResidualVQ", "HierarchicalVQ"])
def test_masks_that_do_not_fit(name: str) -> None:
    assert_refused(name, mask=torch.ones(4, 11, dtype=torch.bool))


def assert_refused(name: str, **options: Any) -> None:
    module = make(name)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    with pytest.raises((TypeError, ValueError, IndexError)):
        module(torch.randn(ADAPTERS[name].shape), **options)
    after = module.state_dict()
    assert after.keys() == before.keys()
    assert [key for key, tensor in before.items() if not torch.equal(after[key], tensor)] == []
