"""The draw of a vector for each code: the bits of the definition on every backend, instruction set and thread count.

Oracles: ``vqkernels/ops/draw_rows/reference.py`` for the kernels; for the definition itself the logarithm of numpy,
and in ``tests/nn/test_reanchor.py`` the distribution that is asked for.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from needs import needs_extension
from variants import variants

from vqkernels._core.canonical import canonical_log
from vqkernels._core.random import row_numbers
from vqkernels.ops.draw_rows import draw_rows
from vqkernels.ops.draw_rows.reference import gumbel_noise
from vqkernels.ops.draw_rows.triton import PLAIN
from vqkernels.testing import PROBLEMS, assert_bitwise_equal, backend_device, lookup_problem, peak_memory_growth
from vqkernels.testing.triton_report import KernelBuild, compile_reports

# numpy warns where the interpreter meets an overflow that a device passes over
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

METRICS = ("l2", "cosine", "dot", "levels")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
N, K = (0, 1, 8, 9, 65, 700), (1, 6, 7, 96, 97, 300)

each_variant = pytest.mark.parametrize(("backend", "isa"), variants("draw_rows"))
each_cpu = pytest.mark.parametrize(("backend", "isa"), [v for v in variants("draw_rows") if v[0] == "cpu"])


def check(
    backend: str,
    metric: str,
    codes: torch.Tensor,  # [K, D]
    x: torch.Tensor,  # [N, D]
    threads: tuple[int, ...] = (1,),
) -> None:
    width = max(1, codes.shape[1] // 3)
    levels = metric == "levels" and codes.shape[1] > 1
    books, points = ([t[:, :width], t[:, width:]] if levels else [t] for t in (codes, x))
    weights = [0.3, 1.0][-len(books) :]
    usable = torch.rand(len(x)) > 0.1

    def draw(name: str, device: torch.device) -> tuple[torch.Tensor, ...]:
        moved = ([t.to(device) for t in levels] for levels in (books, points))
        options = {"seed": 3, "metric": metric, "weights": weights, "backend": name}
        return tuple(t.cpu() for t in draw_rows(*moved, usable.to(device), **options))

    expected = draw("reference", torch.device("cpu"))
    for count in threads:
        torch.set_num_threads(count)
        for actual, want in zip(draw(backend, backend_device(backend)), expected, strict=True):
            assert_bitwise_equal(actual, want)


@each_cpu
def test_sizes(backend: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair of N and K once; dimensions, metrics and dtypes turn at periods of their own."""
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    for i, (n, k) in enumerate(itertools.product(N, K)):
        x, codes = lookup_problem("gaussian", n, k, (1, 3, 8, 33, 64)[i % 5], dtype=DTYPES[i // 4 % 4])
        check(backend, METRICS[i % 4], codes, x, threads=(1, 2))


@each_variant
@pytest.mark.parametrize("name", PROBLEMS)
def test_adversarial_inputs(name: str, backend: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    dtypes = DTYPES[:1] if backend == "triton" else DTYPES[:3]
    for metric, dtype in itertools.product(METRICS, dtypes):
        x, codes = lookup_problem(name, 90, 70, 5, dtype=dtype)
        check(backend, metric, codes, x)


@each_variant
@pytest.mark.parametrize("scale", [1e-300, 1e-25, 1e-3, 30.0, 1e18, 1e154])
def test_every_magnitude(scale: float, backend: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # logits from all alike to one alone, squares that underflow and overflow the scan and float64
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    for metric, dtype in itertools.product(METRICS, (torch.float32, torch.float64)):
        x, codes = (t.mul(scale).to(dtype) for t in lookup_problem("gaussian", 90, 70, 5, dtype=torch.float64))
        codes[3] /= scale
        check(backend, metric, codes, x)


def test_the_logarithm_is_accurate_to_50_bits() -> None:
    value = torch.cat([torch.rand(20000, dtype=torch.float64), 1 - torch.logspace(-10, -1, 2000).double()])
    value = torch.cat([value, torch.logspace(-300, 300, 5000, dtype=torch.float64)])
    truth = np.log(value.numpy().astype(np.longdouble))
    error = np.abs(canonical_log(value).numpy() - truth) / np.abs(truth)
    assert float(error[np.abs(truth) > 0].max()) < 2.0**-50


def test_the_noise_has_gumbels_distribution() -> None:
    numbers = torch.randint(2**32, (400,)), torch.randint(2**32, (300, 1))
    noise = gumbel_noise(*numbers).flatten().sort().values
    assert float(noise.min()) > -4
    assert float(noise.max()) < 23
    # Kolmogorov and Smirnov: the largest distance of 120000 draws exceeds 2.7 / sqrt(n) with a probability of 1e-6
    place = torch.arange(1, len(noise) + 1) / len(noise)
    assert float((torch.exp(-torch.exp(-noise)) - place).abs().max()) < 2.7 / len(noise) ** 0.5


def test_numbers_of_vectors_are_those_of_their_bits() -> None:
    x = torch.randn(40000, 3)
    x[1], x[2] = 0, x[7]
    number = row_numbers(11, x)
    assert 0 <= int(number.min()) <= int(number.max()) < 2**32
    assert_bitwise_equal(row_numbers(11, x.flip(0)), number.flip(0))
    assert number[2] == number[7]
    # 40000 numbers of 32 bits: more than three pairs alike by chance with a probability of 2e-4
    assert len(number.unique()) >= 40000 - 4
    assert int((row_numbers(12, x) == number).sum()) <= 2
    for shift in (0, 8, 24):  # low, middle and high bits; chi-squared with 255 degrees of freedom
        count = (number >> shift & 255).bincount(minlength=256).double()
        assert float(((count - 40000 / 256) ** 2 / (40000 / 256)).sum()) < 400
    half = row_numbers(11, x.to(torch.bfloat16))
    assert len(half.unique()) > 30000


@pytest.mark.parametrize("shape", [(5, 1), (1, 1), (1, 3), (0, 1)])
def test_numbers_of_vectors_are_the_same_in_any_layout(shape: tuple[int, int]) -> None:
    x = torch.randn(shape)
    # what is of size 1 has any stride, and is contiguous all the same
    wide = x.new_empty(2 * shape[0], 2, 7 * shape[1])[::2, 1, ::7].copy_(x)
    for given in (
        wide,
        x[:, None].expand(-1, 1, -1)[:, 0],
        x.as_strided(shape, (shape[1], 6 if shape[1] == 1 else 1)),
    ):
        assert_bitwise_equal(row_numbers(11, given), row_numbers(11, x.clone()))


CAPABILITIES = (pytest.param(80, marks=pytest.mark.slow), 90, pytest.param(100, marks=pytest.mark.slow))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_triton_kernel_compiles_to_canonical_arithmetic(capability: int) -> None:
    """Oracle: what the compiler and the disassembler say."""
    pointers = {"x": "*fp32", "codes": "*fp32", "weights": "*fp64", "usable": "*i1", "keys": "*fp64"}
    pointers |= dict.fromkeys(("row_numbers", "code_numbers", "rows"), "*i64")
    signature = {**pointers, "num_rows": "i32", "num_codes": "i32"}
    builds = [
        KernelBuild(
            "vqkernels.ops.draw_rows.triton_kernels:draw",
            signature,
            {"DIMS": dims, "METRIC": metric, "BLOCK_K": 4, "BLOCK_N": 128},
            capability,
            options=PLAIN,
        )
        for metric, dims in (("l2", (8,)), ("cosine", (256,)), ("dot", (8,)), ("levels", (8, 24)))
    ]
    for report in compile_reports(*builds):
        assert report.spill_bytes == 0
        # products are rounded before they are added
        assert "fma.rn.f64" not in report.ptx


@needs_extension
def test_no_memory_per_pair() -> None:
    n, k, d = 4096, 262144, 4
    setup = f"""
import torch
from vqkernels.ops.draw_rows import draw_rows
torch.set_num_threads(2)
def step(n, k):
    draw_rows([torch.randn(k, {d})], [torch.randn(n, {d})], torch.ones(n, dtype=torch.bool), seed=0, backend="cpu")
step(300, 300)
"""
    # inputs and their copies, eight numbers of bookkeeping per vector and per code; allocator and threads
    budget = 8 * (n + k) * (d + 8) + (16 << 20)
    assert 3 * budget < n * k / 8
    assert peak_memory_growth(setup, f"step({n}, {k})") < budget
