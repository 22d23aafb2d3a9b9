"""Every environment variable the package reads.

``VQKERNELS_ISA``  ``auto`` (default), ``amx``, ``avx512``, ``avx2`` or ``portable``: instruction set of the C++
                   kernels. Results are the same bits on all of them; the switch is for tests and measurements.
``TRITON_INTERPRET``  ``1``: Triton's own switch; its kernels then run in numpy, on CPU tensors too, for tests.
                   To be set before Triton is imported.
"""

from __future__ import annotations

import os

ISA_CODES = {"auto": 0, "portable": 1, "avx2": 2, "avx512": 3, "amx": 4}


def isa_code() -> int:
    """The requested instruction set as the extension's code.

    Raises:
        ValueError: if ``VQKERNELS_ISA`` names none.
    """
    name = os.environ.get("VQKERNELS_ISA", "auto")
    if name not in ISA_CODES:
        raise ValueError(f"VQKERNELS_ISA: expected one of {', '.join(ISA_CODES)}, got {name!r}")
    return ISA_CODES[name]


def triton_interpreted() -> bool:
    """Whether Triton runs its kernels in numpy, on any device; spelled as Triton reads it."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in {"1", "true", "yes", "on", "y"}
