"""The CUDA lookup returns the bits of the definition: executed on the host by an emulation, and on a GPU if asked.

Oracle: the ``reference`` backend, itself held to an independent one by ``test_nearest_code.py``. The emulation
(tests/cuda_emulation) compiles the very kernels and launchers of csrc/cuda; ``-m gpu`` runs the same tests on a
device.
"""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from cuda_emulator import Emulator, compile_emulated

from vqkernels import NearestCode, explain, nearest_code
from vqkernels._core.wide import compared, told
from vqkernels.ops.nearest_code import cuda
from vqkernels.testing import PROBLEMS, assert_bitwise_equal, call_on, lookup_problem

METRICS = ("l2", "cosine", "dot")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

Lookup = Callable[..., NearestCode]


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(tmp_path_factory.mktemp("cuda_emulation"))


def on_device(x: torch.Tensor, codebook: torch.Tensor, metric: str = "l2") -> NearestCode:
    found: NearestCode = call_on("cuda", partial(nearest_code, metric=metric), x, codebook)
    return found


def as_called(kernel: Lookup) -> Lookup:
    """A kernel with what the public function does about float64 vectors before and after it."""

    def lookup(x: torch.Tensor, codebook: torch.Tensor, metric: str = "l2", **options: int) -> NearestCode:
        grouped = codebook if codebook.dim() == 3 else codebook[None]
        found = kernel(compared(x, metric), compared(codebook, metric), metric, **options)
        rows = x.reshape(-1, len(grouped), grouped.shape[2])
        indices, distance = (part.reshape(*rows.shape[:2], 1) for part in found)
        distance = told(distance, rows, grouped, indices, metric)
        return NearestCode(found.indices, distance.reshape(found.distance.shape))

    return lookup


@pytest.fixture(params=["emulated", pytest.param("device", marks=pytest.mark.gpu)])
def lookup(request: pytest.FixtureRequest) -> Lookup:
    return as_called(request.getfixturevalue("emulator").nearest_code) if request.param == "emulated" else on_device


def check(lookup: Lookup, x: torch.Tensor, codebook: torch.Tensor, metric: str = "l2", **options: int) -> None:
    expected = nearest_code(x, codebook, metric=metric, backend="reference")
    found = lookup(x, codebook, metric, **options)
    assert_bitwise_equal(found.indices, expected.indices)
    assert_bitwise_equal(found.distance, expected.distance)


@pytest.mark.covering
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_adversarial_inputs(problem: str, metric: str, lookup: Lookup) -> None:
    number = PROBLEMS.index(problem) + METRICS.index(metric)
    dtype = (torch.float32, torch.float64, torch.float16)[number % 3]
    check(lookup, *lookup_problem(problem, 40, 300, 3, groups=2, dtype=dtype), metric)
    check(lookup, *lookup_problem(problem, 30, 600, (8, 16, 5, 12)[number % 4]), metric)


@pytest.mark.parametrize("d", [*range(1, 17), 17, 40])
def test_every_dimension(d: int, lookup: Lookup) -> None:
    # 17 and more are not scanned
    for problem, metric in (("gaussian", "l2"), ("near-ties", "cosine"), ("clustered", "dot")):
        check(lookup, *lookup_problem(problem, 20, 270, d), metric)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 127, 128, 129, 300])
def test_any_number_of_vectors(n: int, lookup: Lookup) -> None:
    check(lookup, *lookup_problem("gaussian", n, 100, 4))
    check(lookup, *lookup_problem("gaussian", n, 40, 3, groups=3), "dot")


@pytest.mark.parametrize("k", [1, 2, 3, 31, 32, 33, 255, 256, 257, 511, 512, 513, 1025])
def test_any_number_of_codes(k: int, lookup: Lookup) -> None:
    check(lookup, *lookup_problem("gaussian", 20, k, 4))
    check(lookup, *lookup_problem("zero-vectors", 20, k, 2), "cosine")


@pytest.mark.parametrize("groups", [1, 2, 3, 5, 8, 16])
@pytest.mark.parametrize("metric", METRICS)
def test_each_group_has_its_own_codebook(groups: int, metric: str, lookup: Lookup) -> None:
    check(lookup, *lookup_problem("near-ties", 9, 70, 6, groups=groups), metric)


@pytest.mark.parametrize(("x_dtype", "codebook_dtype"), list(itertools.product(DTYPES, DTYPES)))
def test_dtypes_mix(x_dtype: torch.dtype, codebook_dtype: torch.dtype, lookup: Lookup) -> None:
    x, codebook = lookup_problem("near-ties", 30, 200, 9, dtype=torch.float64)
    for metric in METRICS:
        check(lookup, x.to(x_dtype), codebook.to(codebook_dtype), metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e-154, 1e150, 1e200])
def test_float64_beyond_the_range_of_its_squares(scale: float, metric: str, lookup: Lookup) -> None:
    x, codebook = lookup_problem("gaussian", 12, 100, 6, dtype=torch.float64)
    for vectors, codes in ((x * scale, codebook), (x, codebook * scale), (x * scale, codebook * scale)):
        check(lookup, vectors, codes, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_vectors_of_all_kinds_in_one_block(metric: str, lookup: Lookup) -> None:
    """Decided by their record, listed, zero, not finite: neighbours in a warp must not disturb each other."""
    x, codebook = lookup_problem("gaussian", 48, 300, 7)
    x[1::6], x[2::6, 3], x[4::6] = 0.0, torch.inf, 1e30 * x[4::6]
    codebook[200:260] = codebook[:60]
    x[3::6] = codebook[:8] * 2
    codebook[5::7] = torch.nan
    check(lookup, x, codebook, metric)


def test_ties_in_every_section(lookup: Lookup) -> None:
    _, codebook = lookup_problem("gaussian", 0, 1, 5)
    check(lookup, codebook.repeat(10, 1), codebook.repeat(600, 1))


@pytest.mark.parametrize("problem", ["gaussian", "near-ties", "duplicates", "nonfinite"])
def test_parts_of_the_codebook_scanned_apart(problem: str, emulator: Emulator) -> None:
    """Few vectors on many multiprocessors: up to 64 parts, of at least 8 tiles of 256 codes, whose records merge."""
    x, codebook = lookup_problem(problem, 6, 4900, 4)
    each_tile = codebook.flip(0)[::128].clamp(-9, 9)  # nearest to a code of their own, two in every tile
    for multiprocessors in (1, 132):
        check(emulator.nearest_code, torch.cat([x, each_tile]), codebook, multiprocessors=multiprocessors)


BROKEN_KERNELS = """
#include <cuda_runtime.h>
__global__ void reverse(const int* from, int* to, bool wait) {
    __shared__ int shared[64];
    shared[threadIdx.x] = from[threadIdx.x];
    if (wait) __syncthreads();
    to[threadIdx.x] = shared[63 - threadIdx.x];
}
__global__ void part_ways(int* to) {
    if (threadIdx.x > 3) __syncthreads();
    *to = 0;
}
int main(int argc, char**) {
    cudaLaunchConfig_t config;
    config.blockDim = 64;
    int from[64], to[64];
    if (argc > 1) cudaLaunchKernelEx(&config, part_ways, to);
    for (bool wait : {true, false}) {
        for (int i = 0; i < 64; ++i) from[i] = wait ? i : -i;
        cudaLaunchKernelEx(&config, reverse, from, to, wait);
        bool right = true;
        for (int i = 0; i < 64; ++i) right &= to[i] == from[63 - i];
        if (right != wait) return 1;
    }
}
"""


def test_the_emulation_finds_missing_and_divergent_barriers(tmp_path: Path) -> None:
    (tmp_path / "broken.cu").write_text(BROKEN_KERNELS)
    compile_emulated([tmp_path / "broken.cu"], tmp_path / "broken")
    assert subprocess.run([tmp_path / "broken"]).returncode == 0
    divergent = subprocess.run([tmp_path / "broken", "divergent"], capture_output=True, text=True)
    assert divergent.returncode != 0
    assert "wait for each other at different places" in divergent.stderr


def test_tensors_elsewhere_are_refused() -> None:
    x, codebook = lookup_problem("gaussian", 2, 3, 4)
    (choice,) = (c for c in explain("nearest_code", x, codebook, "l2") if c.backend == "cuda")
    assert "tensor on cpu, this backend needs cuda" in choice.reasons
    with pytest.raises(NotImplementedError, match="tensor on cpu, this backend needs cuda"):
        nearest_code(x, codebook, backend="cuda")


@pytest.mark.parametrize("triton", ["usable", "missing"])
def test_triton_goes_first_except_on_measured_shapes(triton: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = cuda.Measured(capability=(9, 0), dim=(2, 8), fewest_codes=1000, source="none")
    monkeypatch.setattr(cuda, "MEASURED_FASTER", (measured,))
    monkeypatch.setattr(cuda, "triton_unsupported_reasons", lambda *_: [] if triton == "usable" else [triton])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    for k, d, slower in ((1000, 8, False), (999, 8, True), (1000, 9, True), (5000, 1, True)):
        reasons = cuda.by_name_only_reasons(torch.empty(0, 1, d), torch.empty(1, k, d), "l2")
        assert bool(reasons) == (slower and triton == "usable"), (k, d)


@pytest.mark.gpu
def test_offsets_beyond_32_bits() -> None:
    """More than 2^31 elements of x; the oracle looks at vectors on both sides of the boundary."""
    d, n = 4, (1 << 29) + 1000
    if torch.cuda.get_device_properties(0).total_memory < 48 * n:
        pytest.skip("the machine has less than 26 GB of device memory")
    x = torch.randn(n, d, device="cuda", dtype=torch.float16)
    _, codebook = lookup_problem("gaussian", 0, 300, d)
    found = nearest_code(x, codebook.cuda(), backend="cuda")
    for part in (slice(0, 2000), slice(n - 2000, n)):
        expected = nearest_code(x[part].cpu(), codebook, backend="reference")
        assert_bitwise_equal(found.indices[part].cpu(), expected.indices)
        assert_bitwise_equal(found.distance[part].cpu(), expected.distance)


@pytest.mark.gpu
def test_no_host_synchronisation() -> None:
    x, codebook = (t.cuda() for t in lookup_problem("duplicates", 1000, 300, 8))
    nearest_code(x, codebook, backend="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        nearest_code(x, codebook, backend="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
