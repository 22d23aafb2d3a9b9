"""Ways to run an op's kernels: a backend and, for the C++ kernels, an instruction set this processor has."""

from __future__ import annotations

import platform
from pathlib import Path

from vqkernels.testing import usable_backends

ISA_FLAGS = {
    "portable": set(),
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512dq", "avx512vl", "avx512bw"},
    "amx": {"avx512f", "avx512dq", "avx512vl", "avx512bw", "avx512_bf16", "amx_tile", "amx_bf16"},
}
OPS_ON_TILES = {"nearest_code"}  # other ops do on AMX what they do on AVX-512


def processor_isas() -> list[str]:
    """The instruction sets that this processor has, the best last."""
    flags = set()
    if platform.machine() == "x86_64" and Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = set(next(line for line in lines if line.startswith("flags")).split())
    return [isa for isa, needed in ISA_FLAGS.items() if needed <= flags]


def variants(op: str) -> list[tuple[str, str]]:
    """Backends but the definition itself, each with its instruction sets."""
    isas = processor_isas()
    return [
        (backend, isa)
        for backend in usable_backends(op)
        if backend != "reference"
        for isa in (isas if backend == "cpu" else ["auto"])
        if isa != "amx" or op in OPS_ON_TILES
    ]
