"""Jobs side by side: what may not run at once, what an error ends, and that no process stays behind."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.training.jobs import Job, side_by_side
from models.training.signals import Stopped

WAIT = 60.0  # seconds at most


def wait_for(path: Path) -> None:
    started = time.monotonic()
    while not path.exists():
        assert time.monotonic() - started < WAIT, f"no {path}"
        time.sleep(0.01)


def meet(mine: Path, other: Path) -> int:
    """Returns only if the other one is called meanwhile."""
    mine.touch()
    wait_for(other)
    return int(os.environ["OMP_NUM_THREADS"])


def alone(folder: Path) -> None:
    """Fails if another one is in there."""
    (folder / "inside").mkdir()
    time.sleep(0.05)
    (folder / "inside").rmdir()


def stopped() -> None:
    raise Stopped(signal.SIGTERM, 3)


def sleep(path: Path) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(str(os.getpid()))
    partial.replace(path)
    time.sleep(WAIT)


def job(name: str, call: object, *arguments: object, makes: tuple[str, ...] = ()) -> Job:
    return Job(name=name, call=call, arguments=arguments, makes=lambda: makes)  # type: ignore[arg-type]


def test_jobs_run_at_once_unless_they_make_the_same_and_an_error_ends_them(tmp_path: Path) -> None:
    one, two, done = tmp_path / "one", tmp_path / "two", dict[str, object]()
    jobs = [
        job("one", meet, one, two, makes=("x",)),
        job("same", alone, tmp_path, makes=("x", "y")),
        job("two", meet, two, one),
        job("same again", alone, tmp_path, makes=("y",)),
        job("long", sleep, tmp_path / "pid"),
        job("stopped", stopped),
    ]
    began = time.monotonic()

    def collect() -> None:
        for each, result in side_by_side(jobs, 2):
            done[each.name] = result

    with pytest.raises(Stopped, match="stopped by SIGTERM after step 3") as raised:
        collect()
    assert done == {"one": 1, "two": 1, "same": None, "same again": None}
    assert raised.value.signum == signal.SIGTERM
    assert time.monotonic() - began < WAIT


def test_long_jobs_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    minutes = {"short": 1.0, "others wait": math.inf, "unknown": 0.0, "long": 2.0, "as short": 1.0}
    jobs = [Job(name=name, call=str, arguments=(), makes=set, minutes=took) for name, took in minutes.items()]
    monkeypatch.setattr(
        "models.training.jobs.ProcessPoolExecutor", lambda processes, **_: ThreadPoolExecutor(processes)
    )
    assert [job.name for job, _ in side_by_side(jobs, 1)] == ["others wait", "long", "short", "as short", "unknown"]


def test_no_process_outlives_its_parent(tmp_path: Path) -> None:
    script, pid = tmp_path / "parent.py", tmp_path / "pid"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom test_jobs import job, sleep\n"
        "from models.training.jobs import side_by_side\n"
        "if __name__ == '__main__':\n    list(side_by_side([job('long', sleep, Path(sys.argv[1]))], 2))\n"
    )
    here = Path(__file__)
    path = os.pathsep.join([str(here.parent), str(here.parents[2])])
    with subprocess.Popen([sys.executable, str(script), str(pid)], env={**os.environ, "PYTHONPATH": path}) as parent:
        wait_for(pid)
        parent.kill()
    child, started = Path("/proc") / pid.read_text(), time.monotonic()
    while child.exists() and (child / "stat").read_text().split()[2] != "Z":
        assert time.monotonic() - started < WAIT
        time.sleep(0.01)


def test_wrong_numbers_are_one_line() -> None:
    from models.pipelines import PipelinesConfig
    from models.reproduce import ReproduceConfig
    from models.systems import SystemsConfig

    for config in (PipelinesConfig, ReproduceConfig, SystemsConfig):
        with pytest.raises(ValueError, match="jobs: expected at least 1, got 0"):
            config(jobs=0)
