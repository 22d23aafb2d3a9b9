"""Work side by side: processes that do one job after the other with one thread each.

Small networks gain little from a second thread; two at once keep two cores busy. A job names what it makes; jobs that
have something of that in common are not done at once. What was killed goes on when the command is given again: jobs
are such that can be.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from models.training.signals import Stopped


@dataclass(frozen=True, kw_only=True)
class Job:
    """A call, sent to another process."""

    name: str
    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    makes: Callable[[], Collection[str]]  # what it still has to make; asked before it begins
    minutes: float = 0.0  # about what it takes, more if others wait for it


def side_by_side(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, Any]]:
    """Do all of them, long ones first where that is possible; each with its result as it gets done.

    A long one that began last would leave the other processes with nothing to do.

    An error or Ctrl-C ends the others too: a training after its step, with a checkpoint, anything else at once.
    """
    waiting = sorted(jobs, key=lambda job: job.minutes, reverse=True)
    running = dict[Future[Any], tuple[Job, set[str]]]()
    context = multiprocessing.get_context("spawn")
    with (
        _one_thread(),
        ProcessPoolExecutor(processes, mp_context=context, initializer=_begin) as pool,
    ):
        try:
            while waiting or running:
                _start(waiting, running, pool, processes)
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    job, _ = running.pop(future)
                    yield job, future.result()
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _start(
    waiting: list[Job], running: dict[Future[Any], tuple[Job, set[str]]], pool: ProcessPoolExecutor, processes: int
) -> None:
    """Begin what can be begun."""
    for job in list(waiting):
        if len(running) == processes:
            return
        makes = set(job.makes())
        if not any(makes & others for _, others in running.values()):
            waiting.remove(job)
            running[pool.submit(_do, job.call, job.arguments)] = job, makes


def _do(call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        return call(*arguments)
    except Stopped as stop:
        parent = multiprocessing.parent_process()
        if parent is None or not parent.is_alive():
            os._exit(128 + stop.signum)  # there is no one to tell
        raise


def _begin() -> None:
    """One thread; Ctrl-C is for the parent alone; and no process stays behind it."""
    torch.set_num_threads(1)
    os.setpgrp()
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)  # a training ends after a step, with a checkpoint; anything else at once


@contextmanager
def _one_thread() -> Iterator[None]:
    """For libraries that read it when they are loaded, in processes that begin meanwhile."""
    name = "OMP_NUM_THREADS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
