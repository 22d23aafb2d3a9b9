"""How calls are drawn: the same ones in every run, or, of a seed, others."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from strategies import CHANGES, changes

CALLS_OF_AN_EXAMPLE = 10  # what hypothesis does for an example costs more than a call
MOST_SHOWN = 20


class Draw:
    """One call: which of several things, and how its arguments are spoilt."""

    def __init__(self, source: random.Random) -> None:
        self._source = source
        self.told: list[str] = []
        torch.manual_seed(source.getrandbits(32))

    def pick(self, *choices: Any) -> Any:
        return self._source.choice(choices)

    def spoilt(self, right: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
        """The arguments of a call, up to two of them changed; ``names`` are those that a call can have."""
        wrong = dict(right)
        # mostly one: the check of the second is not reached where the first one's fails
        for _ in range(self.pick(1, 1, 1, 2, 0)):
            name = self.pick(*names)
            change = self.pick(*changes(right.get(name), self.pick))
            self.told.append(f"{name} {change}")
            wrong[name] = CHANGES[change](right.get(name))
        return wrong


Body = Callable[[Draw], None]


def fuzz(bodies: Mapping[str, Body], calls: int, seed: int | None = None) -> None:
    """Make so many calls, and tell of those that went wrong."""
    names, failures = sorted(bodies), []

    # a call is small as it comes, and told by names: shrinking takes minutes and tells no more
    @settings(
        phases=(Phase.generate,),
        max_examples=-(-calls // CALLS_OF_AN_EXAMPLE),
        derandomize=seed is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=True))
    def run(source: random.Random) -> None:
        nonlocal calls
        for _ in range(min(calls, CALLS_OF_AN_EXAMPLE)):
            calls -= 1
            name, draw = source.choice(names), Draw(source)
            try:
                bodies[name](draw)
            except Exception as error:
                # whatever it is, it is a finding; the others are told too
                failures.append(f"{name} ({', '.join(draw.told)}): {type(error).__name__}: {error}"[:1000])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (run if seed is None else hypothesis.seed(seed)(run))()
    print(f"{seed=}")  # noqa: T201
    assert not failures, f"{len(failures)} calls, of {seed=}:\n" + "\n".join(failures[:MOST_SHOWN])
