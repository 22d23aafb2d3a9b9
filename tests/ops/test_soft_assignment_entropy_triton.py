"""The Triton passes as compiled for GPUs, and the error of their products.

Oracles: the instructions and resources that the compiler reports; products in float64 against an emulation of tensor
cores at their worst.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
import torch

from vqkernels.ops.soft_assignment_entropy import triton as launcher
from vqkernels.ops.soft_assignment_entropy.op import Problem
from vqkernels.testing.triton_report import TENSOR_CORE, KernelBuild, compile_reports

Array: TypeAlias = npt.NDArray[np.float32]
Wide: TypeAlias = npt.NDArray[np.float64]
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


def build(kernel: str, capability: int, wide: int, d: int) -> KernelBuild:
    """As the launcher would have it compiled."""
    shape = launcher.CONFIGS["other"]
    constants = {"D": d, "METRIC": "l2", "WIDE": wide, "COLUMNS": launcher.columns(d)}
    constants |= {"OWNERS": shape.owners, "STREAM": shape.stream}
    if kernel == "normalize":
        signature = BOTH | dict.fromkeys(("least", "log_sum", "entropy"), DOUBLES)
    elif kernel == "sum_terms":
        signature = BOTH | ROWS | {"sums": DOUBLES}
        constants |= {"TERM": "gain", "FLOORED": False}
    else:
        signature = BOTH | ROWS | dict.fromkeys(("mean_gain", "least_t", "moved"), "*fp32")
        signature |= {"total": DOUBLES, "grad_log": DOUBLES}
        constants |= {"X_OWNS": False, "FLOORED": False, "SLICE": launcher.slice_width(d)}
    pointers = tuple(name for name, kind in signature.items() if kind.startswith("*"))
    options = {"num_warps": shape.num_warps, "num_stages": shape.num_stages}
    return KernelBuild(f"{PASSES}:{kernel}", signature, constants, capability, pointers, options)


@pytest.mark.slow
@pytest.mark.parametrize("d", [8, 32, 256])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_passes_compile(capability: int, d: int) -> None:
    """Products run on tensor cores, each pair costs one exponential, and registers suffice (sm_80 has the fewest)."""
    builds = [(kernel, wide) for kernel in ("normalize", "sum_terms", "pull") for wide in (0, 1)]
    reports = compile_reports(*(build(kernel, capability, wide, d) for kernel, wide in builds))
    for (kernel, wide), report in zip(builds, reports, strict=True):
        assert (report.count(TENSOR_CORE) > 0) == (kernel == "pull" or not wide)
        assert report.count(r"MUFU\.EX2") > 0
        # at D = 256 a pull's sums are long; half of them in twice as many programs would cost more than these bytes
        assert report.spill_bytes <= ((512 if wide else 256) if kernel == "pull" and d > 128 else 8)


def nearest_tf32(a: Array) -> Array:
    """``cvt.rna.tf32``: 10 bits after the leading one, ties away from zero."""
    return ((a.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def truncated_tf32(a: Array) -> Array:
    """What a tensor core reads of a float32."""
    return (a.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def to_zero(a: Wide) -> Wide:
    """float64 to 24 bits, towards zero."""
    mantissa, exponent = np.frexp(a)
    cut: Wide = np.ldexp(np.trunc(np.ldexp(mantissa, 24)), exponent - 24)
    return cut


def multiply_accumulate(a: Array, b: Array, total: Wide) -> Wide:  # [N, D], [K, D], [N, K] -> [N, K]
    """A tensor core at its worst: of four products and the sum, each is cut off 24 bits below the largest."""
    for start in range(0, a.shape[1], 4):
        part = slice(start, start + 4)
        terms = np.einsum("nd,kd->dnk", truncated_tf32(a)[:, part].astype(float), truncated_tf32(b)[:, part])
        terms = np.concatenate([terms, total[None]])
        _, exponent = np.frexp(np.abs(terms).max(0))
        total = to_zero(np.ldexp(np.trunc(np.ldexp(terms, 24 - exponent)), exponent - 24).sum(0))
    return total


def three_products(x: Array, c: Array) -> Wide:
    """``tl.dot(x, c.T, input_precision="tf32x3")``."""
    big_x, big_c = nearest_tf32(x), nearest_tf32(c)
    low = multiply_accumulate(x - big_x, big_c, np.zeros((len(x), len(c))))
    return multiply_accumulate(big_x, big_c, multiply_accumulate(big_x, c - big_c, low))


def attacks(d: int) -> list[tuple[Array, Array]]:
    """Vectors whose dropped parts are large, all of one sign, or drowned by one entry; and random ones."""
    generator = np.random.default_rng(d)
    x, c = (generator.standard_normal((40, d)).astype(np.float32) for _ in range(2))
    spread = np.exp2(generator.integers(-12, 1, size=d)).astype(np.float32)
    # 12 bits of ones below those that TF32 keeps: low * low is largest, and truncation takes the last one
    ones = np.full((40, d), 1 + (2.0**12 - 1) * 2.0**-23, dtype=np.float32)
    # beside a product of 1 all others are cut off
    drowned = np.full((40, d), 0.99 * 2.0**-11.5, dtype=np.float32)
    drowned[:, 0] = 1
    return [(x, c), (abs(x) * spread, abs(c)), (ones, ones), (-ones * spread, ones), (drowned, drowned)]


@pytest.mark.parametrize("d", [1, 3, 8, 64, 256])
def test_three_tf32_products_are_within_the_bound(d: int) -> None:
    """Oracle: float64 products, exact enough by 2^29; one TF32 product, to see that the bound tells them apart."""
    worst = plain = 0.0
    for x, c in attacks(d):
        exact = x.astype(float) @ c.astype(float).T
        size = np.linalg.norm(x.astype(float), axis=1)[:, None] * np.linalg.norm(c.astype(float), axis=1)
        allowed = launcher.score_error(d) * size
        worst = max(worst, (np.abs(three_products(x, c) - exact) / allowed).max())
        one = multiply_accumulate(nearest_tf32(x), nearest_tf32(c), np.zeros_like(exact))
        plain = max(plain, (np.abs(one - exact) / allowed).max())
    assert worst <= 1
    # the attack is one: a bound an eighth as wide would fail
    assert worst > 0.125
    assert plain > 1


@pytest.mark.parametrize(("temperature", "wide"), [(0.01, 0), (1e-3, 1)])
def test_small_temperatures_are_computed_in_float64(temperature: float, wide: int) -> None:
    """LlamaGen's 0.01 on unit vectors is not one of them."""
    torch.manual_seed(0)
    x, codebook = (torch.nn.functional.normalize(torch.randn(n, 1, 8), dim=2) for n in (64, 512))
    tau = torch.tensor(temperature, dtype=torch.float64)
    weight = torch.ones(64, 1, dtype=torch.float64)
    problem = Problem(x, codebook.transpose(0, 1), weight, tau, "l2", -math.inf)
    assert launcher.prepare(problem).wide.tolist() == [wide]
