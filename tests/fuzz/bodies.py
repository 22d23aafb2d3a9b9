"""What every call of a kind has to come to: the right answer, or one line that names an argument and nothing done."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from adapters import AUDIO, IMAGES
from derived import DERIVED
from functions import FUNCTIONS, Function
from fuzzing import Body, Draw
from modules import NATIVE, Kind, parameters
from outcome import nonfinite, outcome, snapshot, state_of
from scalars import SCALARS
from stacks import STACKS

KINDS = {**NATIVE, **IMAGES, **AUDIO, **STACKS, **SCALARS}


def call_of_function(function: Function, draw: Draw) -> None:
    right = function.arguments(draw.pick)
    arguments = draw.spoilt(right, function.names)
    before = snapshot(arguments)
    finite = not nonfinite({name: arguments[name] for name in function.written})
    # num_clusters is what k-means calls the n_clusters of an estimator
    result = outcome(lambda: function.call(**arguments), (*function.names, "num_clusters"))
    after = snapshot(arguments)
    failed = isinstance(result, Exception)
    touched = {name for name in before if before[name] != after[name]}
    assert touched <= (set() if failed else set(function.written)), f"changed {touched}"
    if finite:
        assert nonfinite({name: arguments[name] for name in function.written}) == []
    if not failed:
        function.check(arguments, result)


def construction(kind: Kind, draw: Draw) -> None:
    """What is made of odd options serves a right input, or says which option is to blame."""
    options = draw.spoilt(draw.pick(*kind.options()), kind.names)
    module = outcome(lambda: kind.make(**options), kind.names)
    if isinstance(module, Exception) or "forward" not in kind.methods:
        return
    if any(isinstance(tensor, torch.Tensor) and tensor.is_meta for tensor in state_of(module).values()):
        return
    # constants, which are not saved, may be padded with infinities
    before = nonfinite(state_of(module))
    assert nonfinite(module.state_dict()) == []
    right = kind.methods["forward"](module, draw.pick)
    outcome(lambda: module(**right), (*kind.names, *right))
    assert nonfinite(state_of(module)) == before


def call_of_method(kind: Kind, method: str, draw: Draw) -> None:
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
    touched = {name for name in before | after if before.get(name) != after.get(name)}
    failed = isinstance(result, Exception)
    # a module changes itself and nothing else
    assert not touched & (touched if failed else set(arguments)), f"changed {touched}"
    assert nonfinite(states(module, {})) == []
    if not failed and not touched and method in kind.checks:
        kind.checks[method](module, arguments, result)


def states(module: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    return {**(state_of(module) if isinstance(module, torch.nn.Module) else {}), **arguments}


BODIES: dict[str, Body] = {
    **{name: partial(call_of_function, function) for name, function in {**FUNCTIONS, **DERIVED}.items()},
    **{f"{name}()": partial(construction, kind) for name, kind in KINDS.items()},
    **{
        f"{name}().{method}": partial(call_of_method, kind, method)
        for name, kind in KINDS.items()
        for method in kind.methods
    },
}
