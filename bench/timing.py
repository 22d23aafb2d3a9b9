"""Interleaved timing: everyone gets a slice of every round, so that drift of the machine hits all alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bench.case import Call
from bench.device import Device


@dataclass(frozen=True)
class Timing:
    """Seconds per call."""

    median: float
    q20: float
    q80: float
    samples: int


def measure(
    calls: Mapping[str, Call],
    device: Device,
    *,
    rounds: int,
    min_seconds: float,
    max_seconds: float = math.inf,
    between: Callable[[int], None] = lambda _: None,
) -> dict[str, Timing]:
    """Time every call in ``rounds`` slices that add up to at least ``min_seconds`` each.

    The order rotates from round to round. The calls are expected to have run before: nothing is dropped.

    Args:
        calls: what to time, by name.
        device: where they run; it has the clock.
        rounds: slices per implementation; each holds at least one call.
        min_seconds: time to spend in each implementation, all rounds together.
        max_seconds: one that has taken so long is left out of further rounds.
        between: called with the number of each round before it starts.
    """
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        between(number)
        turn = number % max(1, len(names))
        for name in names[turn:] + names[:turn]:
            if samples[name] and sum(samples[name]) >= max_seconds:
                continue
            device.settle()
            samples[name] += device.samples(calls[name], min_seconds / rounds)
    return {name: summarize(seconds) for name, seconds in samples.items()}


def summarize(seconds: list[float]) -> Timing:
    q20, median, q80 = (float(q) for q in np.quantile(seconds, (0.2, 0.5, 0.8)))
    return Timing(median, q20, q80, len(seconds))
