"""Ways to run an op's kernels: a backend and, for the C++ kernels, an instruction set this processor has."""

from __future__ import annotations

import platform
from pathlib import Path

from vqkernels.testing import usable_backends

ISA_FLAGS = {
    "portable": set(),
    "avx2": {"avx2", "fma", "f16c"},
    "avx2_int16": {"avx2", "fma", "f16c"},
    "avx2_int8": {"avx2", "fma", "f16c"},
    "avxvnni": {"avx2", "fma", "f16c", "avx_vnni"},
    "avxvnni_int8": {"avx2", "fma", "f16c", "avx_vnni"},
    "avx512": {"avx512f", "avx512dq", "avx512vl", "avx512bw"},
    "avx512vnni": {"avx512f", "avx512dq", "avx512vl", "avx512bw", "avx512_vnni"},
    "avx512vnni_int8": {"avx512f", "avx512dq", "avx512vl", "avx512bw", "avx512_vnni"},
    "amx": {"avx512f", "avx512dq", "avx512vl", "avx512bw", "avx512_bf16", "amx_tile", "amx_bf16"},
    "amx_int8": {"avx512f", "avx512dq", "avx512vl", "avx512bw", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"},
    "neon": {"aarch64"},
    "neon_int8": {"aarch64", "asimddp"},
}
BYTES = ("avx2_int8", "avxvnni_int8", "avx512vnni_int8", "amx_int8", "neon_int8")
INTEGERS = ("avx2_int16", "avxvnni", "avx512vnni", *BYTES)
NARROW = {*INTEGERS, "amx"}  # other ops do there what they do on AVX2 or AVX-512
NARROW_OPS = {"nearest_code", "top_codes"}


def processor_flags() -> set[str]:
    """What this processor has, as /proc/cpuinfo names it."""
    machine = {"arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    if machine not in {"x86_64", "aarch64"} or not Path("/proc/cpuinfo").exists():
        return {machine}
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = "flags" if machine == "x86_64" else "Features"
    return {machine, *next(line for line in lines if line.startswith(named)).split()}


def processor_isas() -> list[str]:
    """The instruction sets that this processor has, the best last."""
    flags = processor_flags()
    return [isa for isa, needed in ISA_FLAGS.items() if needed <= flags]


def variants(op: str) -> list[tuple[str, str]]:
    """Backends but the definition itself, each with its instruction sets."""
    isas = processor_isas()
    return [
        (backend, isa)
        for backend in usable_backends(op)
        if backend != "reference"
        for isa in (isas if backend == "cpu" else ["auto"])
        if isa not in NARROW or op in NARROW_OPS
    ]
