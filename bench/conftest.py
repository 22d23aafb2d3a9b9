"""Options and setting of ``pytest bench``."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bench.machine import limited_threads
from bench.ours import KEPT_MIB


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench")
    group.addoption("--smoke", action="store_true", help="every case at tiny sizes; figures mean nothing")
    group.addoption("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads (default: all cores)")


@pytest.fixture(scope="session", autouse=True)
def setting(request: pytest.FixtureRequest) -> Iterator[None]:
    """What ``python -m bench.run`` sets: threads alike for all, and codes that come once."""
    with pytest.MonkeyPatch.context() as patch, limited_threads(request.config.getoption("--threads")):
        patch.setenv(KEPT_MIB, "0")
        yield
