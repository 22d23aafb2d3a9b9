"""Modules made and called wrongly: they work all the same, or say in a line what is wrong and stay as they were."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from fuzzing import Draw, fuzz
from modules import NATIVE, Kind, parameters
from outcome import nonfinite, outcome, snapshot, state_of

KINDS = NATIVE
METHODS = [(name, method) for name, kind in KINDS.items() for method in kind.methods]
slow = pytest.param(100, marks=pytest.mark.slow)


@pytest.mark.parametrize("scale", [1, slow])
@pytest.mark.parametrize("name", KINDS)
def test_a_constructor(name: str, scale: int) -> None:
    fuzz(partial(construct, KINDS[name]), 20 * scale, fresh=scale > 1)


@pytest.mark.parametrize("scale", [1, slow])
@pytest.mark.parametrize(("name", "method"), METHODS)
def test_a_method(name: str, method: str, scale: int) -> None:
    fuzz(partial(call, KINDS[name], method), 20 * scale, fresh=scale > 1)


def construct(kind: Kind, draw: Draw) -> None:
    """What is made of odd options serves a right input, or says which option is to blame."""
    options = draw.spoilt(draw.pick(*kind.options()), kind.names)
    module = outcome(lambda: kind.make(**options), kind.names)
    if isinstance(module, Exception) or "forward" not in kind.methods:
        return
    before = dict(state_of(module).items())
    if any(isinstance(tensor, torch.Tensor) and tensor.is_meta for tensor in before.values()):
        return
    right = kind.methods["forward"](module, draw.pick)
    outcome(lambda: module(**right), (*kind.names, *right))
    assert nonfinite(state_of(module)) == []


def call(kind: Kind, method: str, draw: Draw) -> None:
    module = kind.make(**draw.pick(*kind.options()))
    if isinstance(module, torch.nn.Module):
        module.train(draw.pick(True, True, False))
    function = module if method == "forward" else getattr(module, method)
    names = parameters(getattr(type(module), method))
    right = kind.methods[method](module, draw.pick)
    arguments = draw.spoilt(right, names) if names else right
    before = snapshot(states(module, arguments))
    # an option may be to blame too; num_clusters is the number of codes where k-means finds them
    with draw.pick(nullcontext, nullcontext, torch.no_grad, torch.inference_mode)():
        result = outcome(lambda: function(**arguments), (*names, *kind.names, "num_clusters"))
    after = snapshot(states(module, arguments))
    if isinstance(result, Exception):
        assert {name for name in before | after if before.get(name) != after.get(name)} == set()
    else:
        # a module changes itself and nothing else
        assert {name for name in arguments if before.get(name) != after.get(name)} == set()
    assert nonfinite(states(module, {})) == []


def states(module: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    return {**(state_of(module) if isinstance(module, torch.nn.Module) else {}), **arguments}
