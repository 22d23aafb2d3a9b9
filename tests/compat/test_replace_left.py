"""What :func:`vqkernels.replace_quantizers` leaves alone, and says so. Oracle: the model as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from needs import import_library
from torch import nn

from vqkernels import replace_quantizers

vector_quantize_pytorch, vae = map(import_library, ("vector_quantize_pytorch", "diffusers.models.autoencoders.vae"))


class Ours(vae.VectorQuantizer):  # type: ignore[misc]
    """Somebody's own variant."""


class TwoPartQuantizer(nn.Module):
    """Somebody's own."""


def test_what_is_not_known_is_left_and_reported() -> None:
    fsp = vector_quantize_pytorch.FSP(levels=[3, 3])
    model = nn.ModuleDict({"a": Ours(16, 8, 0.25), "b": TwoPartQuantizer(), "c": nn.Linear(2, 2), "d": fsp})
    state = copy.deepcopy(model.state_dict())
    replaced, left = replace_quantizers(model)
    assert replaced == {}
    assert left == {
        "a": f"{__name__}.Ours",
        "b": f"{__name__}.TwoPartQuantizer",
        "d": "vector_quantize_pytorch.finite_scalar_perturbation.FSP",
    }
    assert model.state_dict().keys() == state.keys()


def test_a_second_time_there_is_nothing_to_do() -> None:
    model = nn.Sequential(
        vae.VectorQuantizer(16, 8, 0.25), vector_quantize_pytorch.ResidualVQ(dim=8, num_quantizers=2, codebook_size=8)
    )
    replace_quantizers(model)
    assert replace_quantizers(model) == ({}, {})


def _another_forward(model: nn.Module) -> str:
    model[1].forward = lambda z: z
    return r"1: expected diffusers.+ as its library builds it, got one with another forward"


def _another_parameter(model: nn.Module) -> str:
    model[1].scale = nn.Parameter(torch.ones(()))
    return r"1: expected .+, got one with other parameter scale"


def _another_layer(model: nn.Module) -> str:
    model[1].project = nn.Linear(8, 8)
    return r"1: expected .+, got one with other project"


def _another_version(model: nn.Module) -> str:
    del model[1].legacy
    return r"1: expected .+, got one that does not tell its legacy"


class Variant(vector_quantize_pytorch.VectorQuantize):  # type: ignore[misc]
    """Somebody's own variant."""


def _another_class_inside(model: nn.Module) -> str:
    model[1] = vector_quantize_pytorch.ResidualVQ(dim=8, codebook_size=32, num_quantizers=2)
    model[1].layers[1] = Variant(8, 32)
    return r"1: expected .+ResidualVQ as its library builds it, got one made of test_replace_left.Variant"


@pytest.mark.parametrize(
    "change", [_another_forward, _another_parameter, _another_layer, _another_version, _another_class_inside]
)
def test_a_known_class_that_is_not_as_it_was_built_raises(change: Any) -> None:
    """One line, and the model stays as it was, also where it could have been swapped."""
    model = nn.Sequential(vector_quantize_pytorch.VectorQuantize(8, 16), vae.VectorQuantizer(16, 8, 0.25))
    message = change(model)
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(NotImplementedError, match=message) as raised:
        replace_quantizers(model)
    assert "\n" not in str(raised.value)
    assert [type(module) for module in model.modules()] == kinds
    model[0](torch.randn(1, 5, 8))
