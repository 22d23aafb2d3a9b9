"""Peak memory of one implementation on one case, in a process of its own.

Counted is what an implementation needs beyond its inputs: copies, buffers, results; not the libraries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.case import Call, Implementation, OpCase
from bench.machine import limited_threads
from bench.registry import find_case
from vqkernels.testing import peak_memory_growth


def peak_bytes(case: OpCase, name: str, setting: Mapping[str, Any], *, threads: int, seed: int) -> int:
    """Bytes by which a fresh process grows while the implementation prepares and runs once."""
    what = (case.op, case.name, dict(case.sizes), name, dict(setting), threads, seed)
    return peak_memory_growth(f"from bench.memory import ready\nrun = ready(*{what!r})", "run()")


def ready(
    op: str,
    case_name: str,
    sizes: Mapping[str, int],
    name: str,
    setting: Mapping[str, Any],
    threads: int,
    seed: int,
) -> Call:
    """In the measured process: inputs made, libraries loaded by a small run, the real one to come."""
    case = find_case(op, case_name)
    implementation: Implementation = next(i for i in case.implementations if i.name == name)

    def call(problem: Any) -> None:
        with limited_threads(threads):
            implementation.prepare(problem, **setting)()

    call(case.inputs(case.smoke().sizes, seed))
    problem = case.inputs(sizes, seed)
    return lambda: call(problem)
