"""Every environment variable the package reads.

``VQKERNELS_ISA``  instruction set of the C++ kernels: ``auto`` (default), ``amx_int8``, ``amx``,
                   ``avx512vnni_int8``, ``avx512vnni``, ``avx512``, ``avxvnni_int8``, ``avxvnni``, ``avx2_int8``,
                   ``avx2_int16``, ``avx2``, ``neon_int8``, ``neon`` or ``portable``. Results are the same bits on all
                   of them; the switch is for tests and measurements.
``VQKERNELS_KEPT_MIB``  memory in MiB (64 if not set) for codes of up to 16 dimensions that come again in call after
                   call, as those of a tokenizer at inference do, and the trees over them; 0 keeps and uses none.
                   The codes are compared on every call: results are the same bits at any setting.
``VQKERNELS_PAIRS_MIB``  memory in MiB (64 if not set) up to which the C++ passes of an entropy remember all
                   distances from a forward to its backward, where vectors are long; 0 remembers none. Results are
                   the same bits at any setting.
``VQKERNELS_BOUNDS_MIB``  memory in MiB (1024 if not set) up to which k-means keeps bounds of the distances of rows
                   in memory, where they save work; 0 keeps none. Results are the same bits at any setting.
``TRITON_INTERPRET``  ``1``: Triton's own switch; its kernels then run in numpy, on CPU tensors too, for tests.
                   To be set before Triton is imported.
"""

from __future__ import annotations

import os

ISA_CODES = {
    "auto": 0,
    "portable": 1,
    "avx2": 2,
    "avx512": 3,
    "amx": 4,
    "avx2_int16": 5,
    "avxvnni": 6,
    "avx512vnni": 7,
    "neon": 8,
    "avx2_int8": 9,
    "avxvnni_int8": 10,
    "avx512vnni_int8": 11,
    "neon_int8": 12,
    "amx_int8": 13,
}


def isa_code() -> int:
    """The requested instruction set as the extension's code.

    Raises:
        ValueError: if ``VQKERNELS_ISA`` names none.
    """
    name = os.environ.get("VQKERNELS_ISA", "auto")
    if name not in ISA_CODES:
        raise ValueError(f"VQKERNELS_ISA: expected one of {', '.join(ISA_CODES)}, got {name!r}")
    return ISA_CODES[name]


def kept_bytes() -> int:
    """How many bytes of codes and trees the C++ lookup may keep from call to call.

    Raises:
        ValueError: if ``VQKERNELS_KEPT_MIB`` is no number of MiB.
    """
    return _mebibytes("VQKERNELS_KEPT_MIB")


def pairs_bytes() -> int:
    """How many bytes of distances the C++ passes of an entropy may remember from a forward to its backward.

    Raises:
        ValueError: if ``VQKERNELS_PAIRS_MIB`` is no number of MiB.
    """
    return _mebibytes("VQKERNELS_PAIRS_MIB")


def bounds_bytes() -> int:
    """How many bytes of bounds k-means may keep from pass to pass.

    Raises:
        ValueError: if ``VQKERNELS_BOUNDS_MIB`` is no number of MiB.
    """
    return _mebibytes("VQKERNELS_BOUNDS_MIB", unset="1024")


def _mebibytes(name: str, unset: str = "64") -> int:
    given = os.environ.get(name, unset)
    if not (given.isascii() and given.isdigit() and len(given) <= 9):
        raise ValueError(f"{name}: expected a number of MiB, 0 or more, got {given!r}")
    return int(given) << 20


def triton_interpreted() -> bool:
    """Whether Triton runs its kernels in numpy, on any device; spelled as Triton reads it."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in {"1", "true", "yes", "on", "y"}
