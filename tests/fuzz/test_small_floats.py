"""Numbers of 8 bits are for storage: vectors of them are refused, and so are modules that were cast to them."""

from __future__ import annotations

import random

import pytest
import torch
from bodies import KINDS
from fuzzing import Draw
from outcome import complaint_about, outcome, snapshot, state_of

SMALL = (torch.float8_e4m3fn, torch.float8_e5m2)
MODULES = [
    (name, number)
    for name, kind in KINDS.items()
    if "forward" in kind.methods and name != "taming.EmbeddingEMA"  # which takes indices
    for number in range(len(kind.options()))
]


@pytest.mark.parametrize(("name", "number"), MODULES)
def test_a_module(name: str, number: int) -> None:
    kind = KINDS[name]
    module = kind.make(**kind.options()[number])
    right = kind.methods["forward"](module, Draw(random.Random(0)).pick)
    (x, *_) = right
    before = snapshot(state_of(module))
    for dtype in SMALL:
        with pytest.raises(TypeError) as error:
            module(**{**right, x: right[x].to(dtype)})
        assert complaint_about(error.value, (x, *kind.names)) == ""
    assert snapshot(state_of(module)) == before
    module.eval()
    expected = module(**right)
    before = snapshot(state_of(module.to(SMALL[0])))
    result = outcome(lambda: module(**right), ("module", "codebook", x))
    if not isinstance(result, TypeError):
        # what holds no numbers but whole ones
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
    assert snapshot(state_of(module)) == before
