"""What only the Triton kernels of ``top_codes`` can get wrong: too many candidates for their room, and compilation.

Oracle of results: ``vqkernels/ops/top_codes/reference.py``; of compiled kernels: the contract of the canonical sums.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from vqkernels import top_codes
from vqkernels.ops.top_codes.triton import ELEMENTS, lanes
from vqkernels.testing import assert_bitwise_equal, call_on, usable_backends
from vqkernels.testing.triton_report import KernelBuild, compile_reports

each = pytest.mark.parametrize
LANES = lanes(1)
ROOM = 2 * LANES


def codes_in_one_lane(value: torch.Tensor) -> torch.Tensor:  # [K]
    """Only every LANES-th code is near: the bound from lane minima takes in all far ones."""
    near = torch.arange(len(value)) % LANES == 0
    return torch.where(near, value / 100, 10 + value)


@each("backend", [b for b in usable_backends("top_codes") if b == "triton"])
@each("dtype", [torch.float32, torch.float64], ids=str)
@each("m", [2, 7])
@each("arrange", [codes_in_one_lane, torch.zeros_like, lambda v: (8 * v).round(), torch.sort, torch.neg])
def test_more_candidates_than_room(arrange, m: int, dtype: torch.dtype, backend: str) -> None:
    value = torch.randn(ROOM + 300, dtype=dtype)
    arranged = arrange(value)
    codebook = (arranged if isinstance(arranged, torch.Tensor) else arranged.values)[:, None]
    codebook[5] = torch.nan
    x = torch.tensor([[0.0], [9.0]], dtype=dtype)
    for metric in ("l2", "dot"):
        actual = call_on(backend, partial(top_codes, m=m, metric=metric), x, codebook)
        expected = top_codes(x, codebook, m, metric=metric, backend="reference")
        assert_bitwise_equal(actual.indices, expected.indices)
        assert_bitwise_equal(actual.distance, expected.distance)


@each("backend", [b for b in usable_backends("top_codes") if b == "triton"])
@each("tie", [1.0, 1.0 + 2.0**-20])
def test_a_limit_one_step_too_high_would_lose_the_nearest(tie: float, backend: str) -> None:
    """More equal codes than room, in so few lanes that the bound is above them, before the nearest ones."""
    m = 100
    number = torch.arange(LANES * (ROOM // (m - 1) + 2))
    codebook = torch.where(number % LANES < m - 1, tie, 5.0)[:, None]
    last = len(number) - LANES
    codebook[last : last + 3] = 0.5
    found = call_on(backend, partial(top_codes, m=m), torch.zeros(1, 1), codebook).indices[0]
    ties = number[number % LANES < m - 1][: m - 3]
    assert torch.equal(found, torch.cat([number[last : last + 3], ties]))


INPUTS = {"x": "*fp32", "codes": "*fp32", "x_norm": "*fp64", "code_norm": "*fp64"}
SIZES = {"num_rows": "i32", "num_codes": "i32"} | {f"stride_{name}": "i64" for name in ("xn", "xg", "cg", "ck")}
FOUND = {"m": "i32", "lowest": "*fp64", "bound": "*fp64", "key": "*fp64", "index": "*i32"}


# recorded: bytes a thread of gather_candidates spills, a few words of 255 registers' worth; the rest spill nothing
SPILLS = {(80, 1024): 16, (90, 16): 32}


def builds(capability: int, m: int) -> list[KernelBuild]:
    tile = lanes(m)
    module = "vqkernels.ops.top_codes.triton_select"
    constants = {"stride_xd": 1, "stride_cd": 1, "D": 8, "METRIC": "l2", "ROWS": max(1, ELEMENTS // tile)}
    build = partial(KernelBuild, capability=capability, aligned=tuple(INPUTS), options={"enable_fp_fusion": False})
    return [
        build(f"{module}:lane_minima", INPUTS | SIZES | {"minima": "*fp64"}, constants | {"LANES": tile}),
        build(f"{module}:gather_candidates", INPUTS | SIZES | FOUND, constants | {"TILE": tile, "ROOM": 2 * tile}),
    ]


@each(
    ("capability", "m"),
    [
        (90, 1024),
        *(pytest.param(c, m, marks=pytest.mark.slow) for c, m in ((80, 16), (80, 1024), (90, 16), (100, 16))),
    ],
)
def test_kernels_compile_within_recorded_spills_and_without_fused_sums(capability: int, m: int) -> None:
    chosen = builds(capability, m)
    for build, report in zip(chosen, compile_reports(*chosen), strict=True):
        budget = SPILLS.get((capability, m), 0) if build.kernel.endswith("gather_candidates") else 0
        assert report.spill_bytes <= budget, build
        assert report.count(r"\bDADD") > 0, build
        assert report.count(r"\bDMUL") > 0, build
        # a fused multiply-add would round once where the definition rounds twice
        assert report.count(r"\bDFMA") == 0, build
