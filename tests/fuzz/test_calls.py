"""Every public name called wrongly: it works all the same, or tells what is wrong in a line and changes nothing."""

from __future__ import annotations

import pytest
from bodies import BODIES
from fuzzing import fuzz

CALLS = 2000


@pytest.mark.parametrize("name", BODIES)
def test_a_name(name: str) -> None:
    fuzz({name: BODIES[name]}, -(-CALLS // len(BODIES)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_all_names(seed: int) -> None:
    fuzz(BODIES, CALLS, seed)
