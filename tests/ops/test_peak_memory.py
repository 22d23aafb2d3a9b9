"""No op allocates N x K. Oracle: resident memory of a fresh process against a bound computed from the sizes."""

from __future__ import annotations

import pytest
import torch
from needs import needs_extension

from vqkernels import nearest_code
from vqkernels.testing import backend_device, peak_memory_growth, usable_backends

MIB = 1 << 20
# allocator arenas, thread stacks and code pages loaded late: what two threads need whatever the sizes
FIXED = 16 * MIB

SETUP = """
import torch, vqkernels
torch.set_num_threads(2)
n, k, d = {n}, {k}, {d}
x, codebook = torch.randn(n, d), torch.randn(k, d, requires_grad=True)
small = torch.randn(600, d), torch.randn(300, d, requires_grad=True)
def step(x, codebook):
    {step}
step(*small)
"""


def growth(n: int, k: int, d: int, step: str) -> int:
    return peak_memory_growth(SETUP.format(n=n, k=k, d=d, step=step), "step(x, codebook)")


@needs_extension
def test_lookup_of_4096_vectors_in_262144_codes() -> None:
    n, k, d = 4096, 262144, 4
    # one float64 copy of the inputs and eight numbers of bookkeeping per vector and per code
    budget = 8 * (n + k) * (d + 8) + FIXED
    assert 3 * budget < n * k / 8  # even one bit per pair would be seen
    assert growth(n, k, d, "return vqkernels.nearest_code(x, codebook, backend='cpu')") < budget


@needs_extension
@pytest.mark.slow
def test_lookup_of_16384_vectors_in_more_dimensions() -> None:
    n, k, d = 16384, 262144, 16
    budget = 8 * (n + k) * (d + 8) + FIXED
    assert 3 * budget < n * k / 8
    assert growth(n, k, d, "return vqkernels.nearest_code(x, codebook, backend='cpu')") < budget


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", [b for b in usable_backends("nearest_code") if backend_device(b).type == "cuda"])
def test_lookup_of_65536_vectors_on_a_device(kernel: str) -> None:
    n, k, d = 65536, 262144, 8
    x, codebook = torch.randn(n, d, device="cuda"), torch.randn(k, d, device="cuda")
    nearest_code(x[:100], codebook[:100], backend=kernel)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    nearest_code(x, codebook, backend=kernel)
    grown = torch.cuda.max_memory_allocated() - before
    # packed copies of both sides, at most four numbers a coordinate; results and 100 bytes of bookkeeping per vector
    budget = 8 * (n + k) * (4 * d + 8) + 120 * n
    assert 10 * budget < n * k / 8
    assert grown < budget


@needs_extension
def test_the_64_nearest_of_262144_codes() -> None:
    n, k, d, m = 4096, 262144, 4, 64
    # beyond the lookup above: the result, and lists of candidates for every thread
    budget = 8 * (n + k) * (d + 8) + 12 * n * m + 2 * (2 << 20) + FIXED
    assert 2 * budget < n * k / 8
    assert growth(n, k, d, f"return vqkernels.top_codes(x, codebook, {m}, backend='cpu')") < budget


@needs_extension
@pytest.mark.slow
def test_lookup_in_two_levels_of_262144_codes() -> None:
    n, k, d = 8192, 262144, 8
    # a copy of the inputs as given, the scan's, and eight numbers of bookkeeping per vector and per code
    budget = 8 * (n + k) * (d + 8) + FIXED
    assert 3 * budget < n * k / 8
    step = """
    levels, codebooks = [x[:, :3], x[:, 3:]], [codebook[:, :3], codebook[:, 3:]]
    return vqkernels.multilevel_nearest_code(levels, codebooks, (1.0, 2.0), backend='cpu')
    """.strip()
    assert growth(n, k, d, step) < budget


@needs_extension
def test_training_step_of_16384_vectors_with_100000_codes() -> None:
    n, k, d = 16384, 100000, 8
    step = """
    result = vqkernels.quantize(x.requires_grad_(), codebook, backend='cpu')
    result.quantized.square().mean().backward()
    return vqkernels.code_stats(x, result.indices, codebook.shape[0], backend='cpu')
    """.strip()
    budget = 8 * (n + k) * (4 * d + 8) + FIXED
    assert 3 * budget < n * k / 8
    assert growth(n, k, d, step) < budget


ENTROPY_STEP = """
    sample, usage, _ = vqkernels.soft_assignment_entropy(x.requires_grad_(), codebook, backend='cpu')
    (sample - usage).backward()
    return sample
""".strip()


def entropy_budget(n: int, k: int, d: int) -> int:
    # gradients; two packed copies of the codes and their sums in float64; 12 numbers of bookkeeping per vector and
    # per code; pairs that two threads keep
    return 4 * (n + k) * d + 16 * k * (d + 1) + 96 * (n + k) + 2 * 6 * MIB + FIXED


@needs_extension
def test_entropy_of_2048_vectors_with_65536_codes() -> None:
    n, k, d = 2048, 65536, 4
    budget = entropy_budget(n, k, d)
    assert 3 * budget < n * k
    assert growth(n, k, d, ENTROPY_STEP) < budget


@needs_extension
@pytest.mark.parametrize(("n", "pairs"), [(8184, 64 * MIB), (8208, 0)], ids=["remembered", "too many"])
def test_entropy_of_8200_long_vectors_with_2048_codes(n: int, pairs: int) -> None:
    k, d = 2048, 100
    budget = entropy_budget(n, k, d)
    assert budget < 48 * MIB  # less than all pairs would take
    assert growth(n, k, d, ENTROPY_STEP) < budget + pairs


@needs_extension
@pytest.mark.slow
def test_entropy_of_8192_vectors_with_262144_codes() -> None:
    n, k, d = 8192, 262144, 8
    grown = growth(n, k, d, ENTROPY_STEP)
    assert grown < entropy_budget(n, k, d)
    # and less than 64 MiB beyond gradients
    assert grown - 4 * (n + k) * d < 64 * MIB


@needs_extension
@pytest.mark.slow
def test_entropy_of_131072_vectors_with_2048_codes() -> None:
    n, k, d = 131072, 2048, 4
    budget = entropy_budget(n, k, d)
    assert 3 * budget < n * k
    assert growth(n, k, d, ENTROPY_STEP) < budget
