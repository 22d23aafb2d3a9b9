"""How a script ends: one line on stderr and an exit code, and never in the middle of a step."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class UserError(Exception):
    """Something the user can put right; the message is one line."""


class Stopped(Exception):
    """Training ended on a signal, after a step and with a checkpoint."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}, checkpoint written")
        self.signum = signum


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


def run(main: Callable[[], object]) -> int:
    """Call ``main`` and return the exit code: 0, 1 after a one-line error, 128 + signal after a stop."""
    try:
        main()
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (UserError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
