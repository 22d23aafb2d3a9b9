"""What every test gets: fixed seeds, its own thread count, poisoned uninitialised memory, and the backends.

A module that sets ``OPS = ("nearest_code", ...)`` and asks for the fixture ``backend`` runs once per backend
that serves all of these ops on this machine, as the registry tells. Without a GPU, Triton kernels are interpreted;
with one, every test whose ``backend`` needs it carries the marker ``gpu`` and runs on the device.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

import hypothesis
import numpy as np
import pytest
import setuptools  # noqa: F401, torch.compile imports it, which fails once somebody has the distutils of the standard library
import torch
from covering import covering
from torch.utils._device import _device_constructors

from vqkernels.testing import backend_device, interpreted, usable_backends

Report = TypeVar("Report", pytest.CollectReport, pytest.TestReport)

# read by Triton when it is imported, and by the registry when it is asked
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# ATEN_CPU_CAPABILITY says how inductor compiles, and what it has compiled before is found again without asking
os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE"] = "0"

# `with torch.device(...)` collects the factories it changes when first used: before tests replace some by others
with torch.device("meta"):
    torch.empty(0)

# the same examples in every run: a red test must stay red
hypothesis.settings.register_profile("vqkernels", deadline=None, derandomize=True, database=None, max_examples=100)
hypothesis.settings.load_profile("vqkernels")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    ops = getattr(metafunc.module, "OPS", None)
    if ops and "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", usable_backends(*ops))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # of a grid that the interpreter runs, or that says so, a part that has every value; the others are slow
    grids: dict[tuple[Any, ...], list[pytest.Function]] = {}
    for item in items:
        callspec = getattr(item, "callspec", None)
        backend = callspec.params.get("backend") if callspec else None
        if callspec and (item.get_closest_marker("covering") or (backend is not None and interpreted(backend))):
            # what another marker leaves out stands for nothing
            marked = [bool(item.get_closest_marker(mark)) for mark in ("gpu", "slow")]
            key = (item.nodeid.partition("[")[0], str(backend), *marked)
            grids.setdefault(key, []).append(item)  # type: ignore[arg-type]
        if backend is not None and backend_device(backend).type == "cuda":
            item.add_marker(pytest.mark.gpu)
        if backend is not None and item.get_closest_marker("slow_interpreted") and interpreted(backend):
            item.add_marker(pytest.mark.slow)
        # `-m slow` takes them in; who asks for them gets them, and their errors
        unasked = "gpu" not in item.config.getoption("markexpr")
        if unasked and item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="the machine has no GPU"))
    for grid in grids.values():
        marker = grid[0].get_closest_marker("covering")
        kept = covering({item.name: item.callspec.params for item in grid}, *(marker.args if marker else ()))
        for item in grid:
            if item.name not in kept:
                item.add_marker(pytest.mark.slow)
    most = items[0].config.getoption("--sample") if items else None
    if most is not None:
        items[:] = sample(items, most)


def sample(items: Sequence[pytest.Item], most: int) -> list[pytest.Item]:
    """Of every test on every backend so many parameter sets, spread over all: no test and no backend is left out."""
    alike: dict[tuple[Any, ...], list[pytest.Item]] = {}
    for item in items:
        backend = getattr(item, "callspec", None) and item.callspec.params.get("backend")
        # what a marker leaves out stands for nothing else
        marked = [bool(item.get_closest_marker(mark)) for mark in ("gpu", "slow")]
        alike.setdefault((item.nodeid.partition("[")[0], backend, *marked), []).append(item)
    chosen = {id(same[i * len(same) // most]) for same in alike.values() for i in range(most)}
    return [item for item in items if id(item) in chosen]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--complete", action="store_true", help="tests may be skipped for what the machine lacks only")
    parser.addoption("--sample", type=int, metavar="N", help="at most N parameter sets of every test and backend")
    parser.addoption("--cpu", type=int, metavar="N", help="the N tests that take most user CPU time")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _complete(collector.config, (yield))


_began = 0.0


def _user_seconds() -> float:
    """User CPU time of this process and of those that it has waited for: other work of the machine adds nothing."""
    spent = os.times()
    return spent.user + spent.children_user


def pytest_runtest_protocol() -> None:
    global _began
    _began = _user_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = _complete(item.config, (yield))
    if report.when == "teardown":
        # travels with the report from a worker
        report.user_seconds = _user_seconds() - _began
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    most = config.getoption("--cpu")
    if most is None:
        return
    seconds: Counter[str] = Counter()
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        seconds[getattr(report, "nodeid", "").partition("[")[0]] += getattr(report, "user_seconds", 0.0)
    terminalreporter.section(f"user CPU seconds, {seconds.total():.0f} in all")
    for name, spent in seconds.most_common(most):
        terminalreporter.write_line(f"{spent:7.1f} {name}")


def _complete(config: pytest.Config, report: Report) -> Report:
    """The report, of a failure if it is of a skip that ``--complete`` does not allow."""
    if report.skipped and config.getoption("--complete"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else "expected to fail"
        if not reason.startswith("Skipped: the machine"):
            report.outcome, report.longrepr = "failed", f"--complete allows no such skip. {reason}"
    return report


# where there is no GPU, torch notes with every seed for it who gave it, a thousand times slower than it seeds
_seed_torch = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    _seed_torch(0)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """One thread unless a test says otherwise: on small tensors a second one mostly waits, long if cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def poison_(tensor: torch.Tensor) -> torch.Tensor:
    """Fill a tensor nobody has written yet with NaN, or with a large integer; fake tensors hold nothing."""
    if type(tensor) is not torch.Tensor or tensor.device.type == "meta":
        return tensor
    if tensor.is_floating_point() or tensor.is_complex():
        return tensor.fill_(torch.nan)
    return tensor.fill_(True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max - 77)


# torch lists once, at first use, the functions that a device context redirects: were it to find the poisoning ones
# below in their place, modules built "on the meta device" would be allocated
_device_constructors()


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised tensors that the package asks for arrive poisoned, so that an unwritten element shows."""

    def poisoning(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def wrapper(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = allocate(*args, **kwargs)
            caller = sys._getframe(1).f_globals.get("__name__", "")
            return poison_(tensor) if caller.startswith("vqkernels.") else tensor

        return wrapper

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, poisoning(getattr(owner, name)))
