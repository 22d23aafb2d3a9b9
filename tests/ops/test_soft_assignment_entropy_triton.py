"""The Triton passes as compiled for GPUs. Oracle: the instructions and resources that the compiler reports."""

from __future__ import annotations

import importlib.util

import pytest

from vqkernels.testing.triton_report import TENSOR_CORE, KernelBuild, compile_reports

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]
PASSES = "vqkernels.ops.soft_assignment_entropy.triton_passes"
SIDE = {
    "": "*fp32",
    "_bias": "*fp32",
    "_given": "*fp32",
    "_factor": "*fp64",
    "_stride": "i64",
    "_group_stride": "i64",
    "_step": "i32",
    "_count": "i32",
}
BOTH = {f"{side}{name}": kind for side in ("own", "other") for name, kind in SIDE.items()}
BOTH |= {"slope": "*fp64", "wide": "*i32"}
ROWS = {"origin": "*fp64", "rest": "*fp64", "weight": "*fp32", "grad_entropy": "*fp32", "grad_assigned": "*fp32"}
ROWS |= {"floor": "fp32"}
DOUBLES = "*fp64"


def build(kernel: str, capability: int, wide: int) -> KernelBuild:
    constants = {"D": 32, "METRIC": "l2", "WIDE": wide, "COLUMNS": 32, "OWNERS": 64, "STREAM": 64}
    if kernel == "normalize":
        signature = BOTH | dict.fromkeys(("least", "log_sum", "entropy"), DOUBLES)
    elif kernel == "sum_terms":
        signature = BOTH | ROWS | {"sums": DOUBLES}
        constants |= {"TERM": "gain", "FLOORED": False}
    else:
        signature = BOTH | ROWS | dict.fromkeys(("mean_gain", "least_t", "moved"), "*fp32")
        signature |= {"total": DOUBLES, "grad_log": DOUBLES}
        constants |= {"X_OWNS": False, "FLOORED": False, "SLICE": 32}
    pointers = tuple(name for name, kind in signature.items() if kind.startswith("*"))
    options = {"num_warps": 8, "num_stages": 2}
    return KernelBuild(f"{PASSES}:{kernel}", signature, constants, capability, pointers, options)


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_passes_compile(capability: int) -> None:
    """Products run on tensor cores, each pair costs one exponential, and registers suffice (sm_80 has the fewest)."""
    for wide in (0, 1):
        kernels = ("normalize", "sum_terms", "pull")
        for kernel, report in zip(
            kernels, compile_reports(*(build(kernel, capability, wide) for kernel in kernels)), strict=True
        ):
            assert (report.count(TENSOR_CORE) > 0) == (kernel == "pull" or not wide)
            assert report.count(r"MUFU\.EX2") > 0
            assert report.spill_bytes <= 256
