"""How a command ends: one line on stderr and an exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from models.errors import UserError
from models.training.signals import Stopped


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
