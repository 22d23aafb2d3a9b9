"""How a command ends: one line on stderr and an exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import torch

from models.errors import UserError, first_line
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
        return _failed(str(error).strip().partition("\n")[0] or type(error).__name__)
    except (MemoryError, RuntimeError) as error:
        # the CPU's allocator has no error of its own
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
            return _failed(f"memory: expected sizes that fit, got too little ({first_line(error)})")
        raise
    return 0


def _failed(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1
