"""A call of an adapter that raises changes nothing. Oracle: the state before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from zoo import ADAPTERS, make

import vqkernels.compat.vector_quantize_pytorch as vqp

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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: vqp.ResidualVQ(dim=4, codebook_size=8, num_quantizers=2, diveq=True, use_cosine_sim=True),
            "use_cosine_sim: expected False with diveq, got True",
        ),
        (
            lambda: vqp.ResidualVQ(
                dim=4, codebook_size=8, num_quantizers=2, implicit_neural_codebook=True, straight_through=True
            ),
            "straight_through: expected False with implicit_neural_codebook, got True",
        ),
        (
            lambda: vqp.ResidualVQ(
                dim=4, codebook_size=8, num_quantizers=2, beam_size=2, beam_score_quantizer_weights=[1.0, 1e300]
            ),
            r"beam_score_quantizer_weights: expected a number in .*, got 1e\+300",
        ),
        (
            lambda: vqp.LatentQuantize([5, 5], 8, commitment_loss_weight=-1e300),
            r"commitment_loss_weight: expected a number in .*, got -1e\+300",
        ),
        (
            lambda: vqp.FSQ([5, 5])(torch.zeros(1, 3, 2, device="meta")),
            "device: expected one device, got z on meta, module on cpu",
        ),
        (
            lambda: vqp.EvoLFQ(torch.nn.Identity(), torch.nn.Identity(), dim=4).uniform_crossover(
                torch.ones(3, 4).to(torch.float8_e5m2), torch.ones(3, 4)
            ),
            "parent1: expected integers, .*, got torch.float8_e5m2",
        ),
    ],
    ids=["cosine", "straight-through", "beam", "commitment", "meta", "float8"],
)
def test_what_was_not_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def assert_refused(name: str, **options: Any) -> None:
    module = make(name)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    with pytest.raises((TypeError, ValueError, IndexError)):
        module(torch.randn(ADAPTERS[name].shape), **options)
    after = module.state_dict()
    assert after.keys() == before.keys()
    assert [key for key, tensor in before.items() if not torch.equal(after[key], tensor)] == []
