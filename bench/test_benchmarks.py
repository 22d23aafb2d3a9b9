"""Ours on every case: ``pytest bench --benchmark-only``; with ``--benchmark-compare`` against a run that was saved.

Peers are timed by ``python -m bench.run``. Here they are what ours is held against, at tiny sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from bench.case import Implementation, OpCase
from bench.ours import OURS
from bench.registry import OPS, cases_on

CASES = [pytest.param(case, id=f"{op}-{case.name}") for op in OPS for case in cases_on(op, "cpu")]


@pytest.mark.parametrize("case", CASES)
def test_speed(case: OpCase, benchmark: Any, request: pytest.FixtureRequest) -> None:
    ours = next(i for i in case.implementations if i.name == OURS)
    if reason := case.missing() or ours.missing():
        pytest.skip(f"the machine cannot run it: {reason}")
    gated(case.smoke(), [i for i in case.implementations if not i.flag and not i.missing()])
    sized = case.smoke() if request.config.getoption("--smoke") else case
    call = gated(sized, [ours])
    benchmark.group = case.op
    benchmark.extra_info.update(sized.sizes)
    benchmark(call)


def gated(case: OpCase, contestants: list[Implementation]) -> Any:
    """Hold the answers of ours against the truth, and against the others'; its call."""
    problem = case.inputs(case.sizes, 0)
    calls = {i.name: i.prepare(problem, **i.settings[0]) for i in contestants}
    answers: Mapping[str, Any] = {name: call() for name, call in calls.items()}
    verdicts = case.verify(problem, answers, frozenset(i.name for i in contestants if i.ours))
    red = {i.name: str(verdicts[i.name]) for i in contestants if i.ours and not verdicts[i.name].passed}
    assert not red, f"not exact, and not timed: {red}"
    return calls[OURS]
