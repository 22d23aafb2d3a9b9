"""A training ends between two steps: SIGTERM and Ctrl-C become a request."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """Training ended on a signal, after a step and with a checkpoint."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}, checkpoint written")
        self.signum, self.step = signum, step

    def __reduce__(self) -> tuple[type[Stopped], tuple[int, int]]:  # to be told to another process
        return Stopped, (self.signum, self.step)


class StopRequest:
    """The first SIGTERM or Ctrl-C, 0 before."""

    signum = 0


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGTERM or Ctrl-C into a request; a second one acts at once, as it did before."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may set handlers
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def handle(signum: int, frame: FrameType | None) -> None:
        request.signum = signum
        restore()

    for number in previous:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        restore()
