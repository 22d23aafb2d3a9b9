"""The Triton lookup in levels: the bits of the definition, interpreted or on a device, and what it compiles to.

The oracle is ``vqkernels/ops/multilevel_nearest_code/reference.py``.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from multilevel import MultilevelProblem, multilevel_problem

from vqkernels import multilevel_nearest_code
from vqkernels.testing import PROBLEMS, assert_bitwise_equal, backend_device, strided, to_device, usable_backends
from vqkernels.testing.triton_report import KernelBuild, KernelReport, compile_reports

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
WEIGHTS = ((1.0, 1.0, 1.0), (0.0, 1.0, 2.0), (1e-40, 1.0, 1e30), (5e-324, 5e-324, 5e-324), (1e308, 1e-308, 1e300))
KERNELS = "vqkernels.ops.multilevel_nearest_code.triton_search"

# numpy warns where the interpreter meets an overflow that a device passes over
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

each_power = pytest.mark.parametrize("squared", [False, True], ids=["distance", "squared"])
each_backend = pytest.mark.parametrize(
    "backend", [name for name in usable_backends("multilevel_nearest_code") if name == "triton"]
)


def check(problem: MultilevelProblem, weights: tuple[float, ...], squared: bool, backend: str) -> None:
    expected = multilevel_nearest_code(*problem, weights, squared=squared, backend="reference")
    device = backend_device(backend)
    moved = ([to_device(t, device) for t in levels] for levels in problem)
    result = multilevel_nearest_code(*moved, weights, squared=squared, backend=backend)
    assert_bitwise_equal(result.indices.cpu(), expected.indices)
    assert_bitwise_equal(result.distance.cpu(), expected.distance)


@each_backend
@each_power
@pytest.mark.parametrize("name", PROBLEMS)
def test_adversarial_inputs(name: str, squared: bool, backend: str) -> None:
    check(multilevel_problem((name, "gaussian"), 40, 300, (3, 2)), (1.0, 0.3), squared, backend)
    check(multilevel_problem(("near-ties", name), 40, 300, (2, 1), dtype=torch.float64), (1.0, 0.3), squared, backend)


@each_backend
@each_power
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("scale", [1e-200, 1e-22, 1.0, 1e19, 1e154])
def test_weights_and_ranges(scale: float, weights: tuple[float, ...], squared: bool, backend: str) -> None:
    # squares that underflow and overflow the dtype of the scan, or the canonical one, in one level
    dtype = torch.float64 if scale in (1e-200, 1e154) else torch.float32
    xs, codebooks = multilevel_problem(("gaussian",), 20, 100, (2, 1, 3), dtype=dtype)
    scaled = MultilevelProblem([xs[0] * scale, *xs[1:]], [codebooks[0] * scale, *codebooks[1:]])
    check(scaled, weights, squared, backend)


@each_backend
@pytest.mark.parametrize("n", [0, 1, 255, 257])
def test_sizes(n: int, backend: str) -> None:
    for k in (1, 255, 256, 257, 20000):
        check(multilevel_problem(("gaussian",), n, k, (2, 1)), (1.0, 2.0), False, backend)


@each_backend
@each_power
def test_near_ties_in_different_sections(squared: bool, backend: str) -> None:
    # hundreds of codes compete for a vector, some in every section of the codebook
    for names, weights in ((("near-ties",), (1.0, 0.1)), (("near-ties", "all-equal"), (0.3, 0.7))):
        check(multilevel_problem(names, 8, 3000, (3, 2)), weights, squared, backend)


@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_eight_levels_of_any_dtype(dtype: torch.dtype, backend: str) -> None:
    xs, codebooks = multilevel_problem(("duplicates", "nonfinite"), 30, 200, (1, 2, 1, 3, 1, 2, 1, 1), dtype=dtype)
    weights = tuple(1.0 / (level + 1) for level in range(8))
    check(
        MultilevelProblem([strided(xs[0]), *xs[1:]], [codebooks[0].half(), *codebooks[1:]]), weights, False, backend
    )


@each_backend
def test_the_levels_of_a_semantic_codebook(backend: str) -> None:
    check(multilevel_problem(("clustered", "gaussian"), 50, 700, (8, 24)), (1.0, 0.5), False, backend)


@each_backend
@settings(max_examples=25)
@given(data=st.data())
def test_any_lookup(backend: str, data: st.DataObject) -> None:
    dims = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    names = tuple(data.draw(st.lists(st.sampled_from(PROBLEMS), min_size=1, max_size=3)))
    sizes = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 80))
    weights = data.draw(st.lists(st.floats(0, 1e300), min_size=len(dims), max_size=len(dims)).filter(any))
    dtype = data.draw(st.sampled_from(DTYPES))
    check(multilevel_problem(names, *sizes, dims, dtype=dtype), tuple(weights), data.draw(st.booleans()), backend)


def scan_build(capability: int, squared: bool) -> KernelBuild:
    tensors = dict.fromkeys(("x", "codes", "factors", "lows"), "*fp32")
    sizes = dict.fromkeys(("num_rows", "num_codes", "section_codes"), "i32")
    constants = {"DIMS": [8, 24], "SQUARED": squared, "BLOCK_N": 64, "BLOCK_K": 64}
    return KernelBuild(f"{KERNELS}:scan_sections", tensors | sizes, constants, capability, tuple(tensors))


def decide_build(capability: int, squared: bool) -> KernelBuild:
    tensors = {"x": "*fp32", "codes": "*fp32", "weights": "*fp64", "lows": "*fp32", "unit": "*fp64"}
    tensors |= {"indices": "*i64", "distance": "*fp32"}
    sizes = dict.fromkeys(("num_rows", "num_codes", "section_codes"), "i32")
    constants = {"D": 32, "DIMS": [8, 24], "SQUARED": squared, "SECTIONS": 64, "WIDTH": 64, "ROWS": 1, "BLOCK_K": 128}
    options = {"enable_fp_fusion": False}
    return KernelBuild(f"{KERNELS}:decide_rows", tensors | sizes, constants, capability, tuple(tensors), options)


def test_compiled_kernels() -> None:
    """On three architectures: no spills to speak of, a scan loop of arithmetic without shuffles, exact roots."""
    builds = [make(capability, False) for make in (scan_build, decide_build) for capability in (80, 90, 100)]
    reports: list[KernelReport] = compile_reports(*builds)
    for scan in reports[:3]:
        loop = scan.loop_with("FFMA")
        assert scan.spill_bytes == 0
        # a subtraction and a multiply-add per pair and dimension are most of the loop
        assert scan.count("FFMA|FADD", loop) > len(loop) / 3
        assert scan.count("SHFL", loop) == 0
    for decide in reports[3:]:
        assert decide.spill_bytes <= 64
        assert "sqrt.rn.f64" in decide.ptx
        # products are rounded before they are added
        assert "fma.rn.f64" not in decide.ptx
