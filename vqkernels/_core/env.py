"""Every environment variable the package reads.

``VQKERNELS_ISA``  ``auto`` (default), ``avx512``, ``avx2`` or ``portable``: instruction set of the CPU kernels.
                   Results are the same bits on all of them; the switch is for tests and measurements.
"""

from __future__ import annotations

import os

ISA_CODES = {"auto": 0, "portable": 1, "avx2": 2, "avx512": 3}


def isa_code() -> int:
    """The requested instruction set as the extension's code.

    Raises:
        ValueError: if ``VQKERNELS_ISA`` names none.
    """
    name = os.environ.get("VQKERNELS_ISA", "auto")
    if name not in ISA_CODES:
        raise ValueError(f"VQKERNELS_ISA: expected one of {', '.join(ISA_CODES)}, got {name!r}")
    return ISA_CODES[name]
