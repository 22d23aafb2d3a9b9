"""Peak memory of one call, measured in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

# the peak is reset after `setup`; getrusage would still tell the maximum of the setup, or of the process that
# started this one
_PROGRAM = """
def _status(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

{setup}

with open("/proc/self/clear_refs", "w") as control:
    control.write("5")
_before = _status("VmRSS")
{call}
print("\\npeak growth:", _status("VmHWM") - _before)
"""


def peak_memory_growth(setup: str, call: str, *, env: Mapping[str, str] | None = None) -> int:
    """Bytes by which the resident memory of a fresh Python process peaks during ``call``.

    Args:
        setup: Python statements run first: imports, inputs, a small call that starts threads and loads code.
        call: Python statements to measure, run in the same namespace.
        env: environment variables added to the inherited ones.

    Returns:
        Highest resident size during ``call``, less the resident size before it.

    Raises:
        RuntimeError: if the program fails, with its error output, or the system has no ``/proc``.

    Example:
        >>> from vqkernels.testing import peak_memory_growth
        >>> 8_000_000 <= peak_memory_growth("", "data = b'x' * 8_000_000") < 16_000_000
        True
    """
    if not Path("/proc/self/clear_refs").exists():
        raise RuntimeError("peak_memory_growth: expected a Linux /proc, got none")
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(setup=setup, call=call)],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the measured program failed: {done.stderr.strip()}")
    return int(done.stdout.rsplit("peak growth:", 1)[1])
