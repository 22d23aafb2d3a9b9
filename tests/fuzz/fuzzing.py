"""How examples are drawn: the same ones in every run, or, of a slow test, new ones from a seed that it prints."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable
from typing import Any

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from strategies import CHANGES, changes

SEED = "VQKERNELS_FUZZ_SEED"


class Draw:
    """One example: which of several things, and how the arguments of a call are spoilt."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        torch.manual_seed(data.draw(st.integers(0, 1 << 16), label="seed of the tensors"))

    def pick(self, *choices: Any) -> Any:
        return choices[self._data.draw(st.integers(0, len(choices) - 1))]

    def spoilt(self, right: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
        """The arguments of a call, up to two of them changed; ``names`` are those that a call can have."""
        wrong = dict(right)
        # mostly one: the check of the second is not reached where the first one's fails
        for _ in range(self.pick(1, 1, 1, 2, 0)):
            name = self._data.draw(st.sampled_from(names), label="argument")
            change = self._data.draw(changes(right.get(name)), label="change")
            wrong[name] = CHANGES[change](right.get(name))
        return wrong


def fuzz(body: Callable[[Draw], None], examples: int, *, fresh: bool = False) -> None:
    """Run ``body`` on so many examples."""
    seed = int(os.environ.get(SEED, random.SystemRandom().randrange(1 << 32)))

    # an example is small as it comes, and told by names: shrinking takes minutes and tells no more
    @settings(
        phases=(Phase.generate,),
        max_examples=examples,
        derandomize=not fresh,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body(Draw(data))

    try:
        (hypothesis.seed(seed)(run) if fresh else run)()
    except BaseException:
        if fresh:
            print(f"{SEED}={seed} repeats this")  # noqa: T201
        raise
