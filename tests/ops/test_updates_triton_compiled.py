"""The Triton kernels of the updates, compiled for the architectures they are meant for.

Oracle: what the compiler and the disassembler say.
"""

from __future__ import annotations

from typing import Any

import pytest

from vqkernels.testing.triton_report import KernelBuild, compile_reports

CAPABILITIES = (pytest.param(80, marks=pytest.mark.slow), 90, pytest.param(100, marks=pytest.mark.slow))
STRIDES = {f"stride_{name}": "i32" for name in ("xn", "xg", "xd", "in", "ig", "wn", "wg")}


def builds(capability: int) -> dict[str, KernelBuild]:
    """Every kernel in the shape that a GPU launches, for D = 8; the sums for D = 256 too."""

    def build(kernel: str, signature: dict[str, str], **constants: Any) -> KernelBuild:
        return KernelBuild(f"vqkernels.ops.{kernel}", signature, constants, capability)

    rows = {"x": "*fp32", "indices": "*i64", "weight": "*fp32", "num_rows": "i32", **STRIDES}
    sums = {**rows, "grid": "*i64", "num_codes": "i32"}
    add, options = "code_stats.triton_kernels:add_rows", {"HAS_WEIGHT": False, "SKIP_NONFINITE": True, "BLOCK_N": 64}
    state = {"cluster_size": "*fp32", "embed_sum": "*fp32", "moved": "*i8", "num_codes": "i32"}
    block = {"D": 8, "BLOCK": 256, "BLOCK_D": 8}
    strides = {f"stride_{name}": "i32" for name in ("cg", "ck", "cd", "in", "ig")}
    integers, floats = {"count": "*i64", "total": "*i64"}, {"count": "*fp32", "total": "*fp32"}
    return {
        "exact sums": build(add, {**sums, **integers}, D=8, BLOCK_D=8, FIXED=True, **options),
        "exact sums of long vectors": build(add, {**sums, **integers}, D=256, BLOCK_D=16, FIXED=True, **options),
        "fast sums": build(add, {**sums, **floats}, D=8, BLOCK_D=8, FIXED=False, **options),
        "range": build(
            "code_range.triton_kernels:measure_rows",
            {**rows, "exponents": "*i64", "numbers": "*i64", "num_codes": "i32"},
            **options, D=8, BLOCK_D=8,
        ),
        "rounding": build(
            "code_stats.triton_kernels:round_sums",
            {
                "grid": "*i64", **integers, "count_out": "*fp32", "total_out": "*fp32",
                "num_codes": "i32", "num_entries": "i32",
            },
            D=8, HAS_WEIGHT=False, BLOCK=1024,
        ),
        "lost sums": build(
            "code_stats.triton_kernels:mark_lost",
            {**rows, "total": "*fp32", "num_codes": "i32"},
            D=8, HAS_WEIGHT=False, BLOCK_N=64, BLOCK_D=8,
        ),
        "gather": build(
            "gather_codes.triton_kernels:copy_codes",
            {
                "codebook": "*fp32", "indices": "*i64", "codes": "*fp32",
                "num_rows": "i32", "num_codes": "i32", "num_groups": "i32", **strides,
            },
            **block,
        ),
        "statistics": build(
            "ema_update.triton_kernels:move_statistics",
            {**state, **floats, "decay": "i64", "rest": "i64"},
            **block,
        ),
        "codes": build(
            "ema_update.triton_kernels:write_codes",
            {**state, "codebook": "*fp32", "size_of_all": "*fp64", "eps": "i64"},
            SMOOTH=True, NORMALIZE=True, **block,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_compile_without_spills(capability: int) -> None:
    wanted = builds(capability)
    for name, report in zip(wanted, compile_reports(*wanted.values()), strict=True):
        assert report.spill_bytes == 0, name
        if name == "exact sums":
            # integers go to memory by reductions that return nothing
            assert report.count(r"RED\S*\.64|REDG\S*\.64") > 0
