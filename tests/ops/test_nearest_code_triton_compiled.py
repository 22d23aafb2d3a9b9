"""What the Triton lookup compiles to on three architectures, without a GPU.

Oracle: the machine code. Tensor cores do the scan, registers suffice, no thread asks another in the loop over codes
(shuffles), and the canonical sums use no fused multiply-add.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from vqkernels.ops.nearest_code import triton as launcher
from vqkernels.testing.triton_report import TENSOR_CORE, KernelBuild, KernelReport, compile_reports

CAPABILITIES = (80, 90, 100)
DIMENSIONS = (8, 64, 256)
MODULES = {
    "canonical_norms": "vqkernels._core.triton_canonical",
    **dict.fromkeys(
        ("measure_box", "place_frame", "pack_codes", "pack_rows"), "vqkernels.ops.nearest_code.triton_prepare"
    ),
    **dict.fromkeys(
        ("scan_codes", "decide_rows", "scan_listed", "decide_listed"), "vqkernels.ops.nearest_code.triton_search"
    ),
}

# type of a run-time parameter, wherever it appears
TYPES = {
    **dict.fromkeys(("x", "codes", "vectors"), "*fp32"),
    **dict.fromkeys(("norm", "x_norm", "code_norm", "box", "centre", "scale", "found_key"), "*fp64"),
    **dict.fromkeys(("packed", "packed_x", "packed_codes"), "*fp16"),
    **dict.fromkeys(("best", "second", "slack", "limit", "distance"), "*fp32"),
    **dict.fromkeys(("tile", "listed", "count", "found_index"), "*i32"),
    "indices": "*i64",
}
SIZES = (
    "num_rows",
    "num_codes",
    "num_vectors",
    "num_tiles",
    "tiles_per_split",
    "codes_per_program",
    "items_per_group",
)
STRIDES = (
    "stride_xn",
    "stride_xg",
    "stride_xd",
    "stride_cg",
    "stride_ck",
    "stride_cd",
    "rows_per_group",
    "stride_g",
    "stride_v",
    "stride_d",
)


def build(kernel: str, d: int, capability: int, metric: str = "l2") -> KernelBuild:
    """A kernel with the constants that its launcher would pass."""
    packing, config = launcher.choose(f"sm_{capability}", d)
    scan = kernel == "scan_codes"
    constants: dict[str, Any] = {
        "D": d,
        "METRIC": metric,
        "PIECES": packing.pieces,
        "COLUMNS": packing.columns,
        "WIDTH": packing.width if kernel.startswith("scan") else min(64, d),
        "CHUNKS": packing.chunks,
        "TAIL": packing.tail,
        "BLOCK": config.decide if kernel == "decide_rows" else config.prepare,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.listed_codes if kernel == "scan_listed" else config.block_k,
        "STEP": config.step,
        "PARTS": config.box_parts,
        "ROWS": config.decide,
        "LANES": launcher.LANES,
        "SPLITS": 2,
        "SCORE_ERROR": launcher.score_error(packing),
        "HALF_FLOOR": 2.0**-20,
    }
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages} if scan else {"num_warps": 4}
    types = {
        **TYPES,
        **dict.fromkeys(SIZES + STRIDES, "i32"),
        "radius": "*i32" if kernel == "pack_codes" else "*fp32",
    }
    return KernelBuild(
        f"{MODULES[kernel]}:{kernel}", types, constants, capability, tuple(TYPES), options | launcher.PLAIN
    )


CASES = [("scan_codes", d, capability, "l2") for d in DIMENSIONS for capability in CAPABILITIES]
CASES += [("decide_rows", 64, capability, metric) for capability in CAPABILITIES for metric in ("l2", "cosine")]
CASES += [("scan_listed", d, capability, "l2") for d, capability in ((8, 80), (8, 90), (256, 90), (64, 100))]
CASES += [(kernel, 8, 90, "cosine") for kernel in ("canonical_norms", "measure_box", "place_frame", "pack_codes")]
CASES += [("pack_rows", 64, 90, "l2"), ("decide_listed", 8, 90, "cosine")]


Case = tuple[str, int, int, str]
# every kernel is among those of sm_90
MARKED = {case: pytest.param(case, marks=() if case[2] == 90 else pytest.mark.slow) for case in CASES}


@functools.cache
def reports(capability: int) -> dict[Case, KernelReport]:
    cases = [case for case in CASES if case[2] == capability]
    return dict(zip(cases, compile_reports(*(build(*case) for case in cases)), strict=True))


def cases(wanted: Callable[[Case], bool] = lambda case: True) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [MARKED[case] for case in CASES if wanted(case)], ids=str)


def test_every_kernel_is_compiled_by_default() -> None:
    assert {case[0] for case in CASES if case[2] == 90} == {case[0] for case in CASES} == set(MODULES)


@cases()
def test_nothing_is_spilled(case: Case) -> None:
    # bytes per thread; the kernels that decide trade a few for occupancy, outside their inner loops
    budget = {"scan_listed": 32, "decide_rows": 8}.get(case[0], 0)
    assert reports(case[2])[case].spill_bytes <= budget


@cases(lambda case: case[0] == "scan_codes")
def test_the_scan_runs_on_tensor_cores_and_keeps_to_itself(case: Case) -> None:
    _, d, capability, _ = case
    report = reports(capability)[case]
    assert report.count(TENSOR_CORE) > 0
    # the loop over codes is the one with the minima; its accumulators are reduced in registers
    loop = report.loop_with("FMNMX")
    assert loop
    chunked_mma_v2 = capability == 80 and launcher.choose("sm_80", d)[0].chunks > 1
    assert report.count("SHFL", loop) <= (32 if chunked_mma_v2 else 0)
    # few instructions per pair besides the products: one minimum, and what is shared by the pairs of a tile
    config = launcher.choose(f"sm_{capability}", d)[1]
    pairs = config.block_n * config.block_k // (32 * config.num_warps)
    assert report.count("FMNMX", loop) < (2.2 if chunked_mma_v2 else 1.2) * pairs


@cases(lambda case: case[3] == "l2" and "pack" not in case[0])
def test_canonical_sums_are_not_fused(case: Case) -> None:
    report = reports(case[2])[case]
    assert report.count("DFMA") == 0
    assert (report.count("DADD") > 0) == (case[0] in ("decide_rows", "scan_listed"))


@cases(lambda case: case[3] == "cosine")
def test_roots_and_quotients_are_correctly_rounded(case: Case) -> None:
    # ptxas expands them with fused operations of its own; there is none besides
    ptx = reports(case[2])[case].ptx
    assert "fma.rn.f64" not in ptx
    assert "approx" not in ptx
    assert ("div.rn.f64" in ptx) == (case[0] != "canonical_norms")
    assert ("sqrt.rn.f64" in ptx) == (case[0] in ("canonical_norms", "place_frame", "pack_codes"))


def test_fused_sums_and_spills_would_be_seen() -> None:
    fused = build("decide_rows", 8, 90)
    fused.options["enable_fp_fusion"] = True
    crowded = build("scan_codes", 64, 90)
    crowded.constants["BLOCK_K"], crowded.options["num_warps"] = 256, 4
    first, second = compile_reports(fused, crowded)
    assert first.count("DFMA") > 0
    assert second.spill_bytes > 0
