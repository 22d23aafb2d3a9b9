"""The published entropy losses. Oracles: each written out on the materialised N x K matrix the way its paper's code
computes it, the installed LFQ, all 2^D sign codes, and one process that sees the batches of two.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from needs import import_library
from processes import run_processes
from rounding import farthest, in_their_last_bits
from torch.distributed.nn.functional import all_reduce

from vqkernels import soft_assignment_entropy
from vqkernels.nn import (
    IBQ_ENTROPY,
    LFQ_ENTROPY,
    LLAMAGEN_ENTROPY,
    MAGVIT2_ENTROPY,
    SEQGAN_ENTROPY,
    EntropyLoss,
    sign_entropy,
)
from vqkernels.testing import assert_within_budget


def squared_distances(x: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    return (x[:, None] - codebook).square().sum(2)


def seqgan(x: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    mean = (-squared_distances(x, codebook)).softmax(1).mean(0)
    return (mean * mean.log()).sum()


def from_affinity(affinity: torch.Tensor, temperature: float) -> torch.Tensor:
    """MaskGIT's loss: eps shifts all logits alike, which changes nothing, and is inside one logarithm."""
    p = (affinity / temperature).softmax(1)
    log_p = (affinity / temperature + 1e-5).log_softmax(1)
    mean = p.mean(0)
    return -(p * log_p).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()


def clamped(x: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    p = (200 * x @ codebook.T).softmax(1)

    def entropy(q: torch.Tensor) -> torch.Tensor:
        return -(q * q.clamp(min=1e-5).log()).sum(-1)

    return entropy(p).mean() - entropy(p.mean(0))


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
PUBLISHED: dict[str, tuple[EntropyLoss, Loss]] = {
    "seqgan": (SEQGAN_ENTROPY, seqgan),
    "llamagen": (LLAMAGEN_ENTROPY, lambda x, c: from_affinity(-squared_distances(x, c), 0.01)),
    "magvit2": (MAGVIT2_ENTROPY, lambda x, c: from_affinity(2 * x @ c.T, 0.01)),
    "ibq": (IBQ_ENTROPY, lambda x, c: from_affinity(x @ c.T, 0.01)),
    "lfq": (LFQ_ENTROPY, clamped),
}


def sign_codes(d: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.tensor(list(itertools.product((-1.0, 1.0), repeat=d)))


def with_gradients(loss: Loss, x: torch.Tensor, codebook: torch.Tensor) -> list[torch.Tensor]:
    x, codebook = (t.detach().clone().requires_grad_() for t in (x, codebook))
    value = loss(x, codebook)
    return [value.detach(), *torch.autograd.grad(value, (x, codebook))]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_the_published_loss(name: str) -> None:
    preset, plain = PUBLISHED[name]
    x = 0.1 * torch.randn(200, 6)
    codebook = sign_codes(6) if name in ("magvit2", "lfq") else 0.1 * torch.randn(70, 6)
    truth = with_gradients(plain, x.double(), codebook.double())
    runs = [with_gradients(plain, *moved) for moved in in_their_last_bits([x, codebook])]
    for actual, exact, *float32 in zip(with_gradients(preset, x, codebook), truth, *runs, strict=True):
        # the loss is a difference of two entropies of up to log K, each with its own rounding
        band = torch.tensor(math.log(70)) if exact.dim() == 0 else 0.0
        assert_within_budget(actual + band, exact + band, farthest(exact, float32) + band, factor=4.0)


def test_lfq_as_installed() -> None:
    lfq = import_library("vector_quantize_pytorch").LFQ(codebook_size=64, dim=6)
    x = 0.02 * torch.randn(2, 50, 6)
    _, breakdown = lfq(x, inv_temperature=100.0, return_loss_breakdown=True)
    sample = dataclasses.replace(LFQ_ENTROPY, usage_weight=0.0)(x, sign_codes(6))
    usage = -dataclasses.replace(LFQ_ENTROPY, sample_weight=0.0)(x, sign_codes(6))
    torch.testing.assert_close(sample, breakdown.per_sample_entropy)
    torch.testing.assert_close(usage, breakdown.batch_entropy)


def test_base_and_groups() -> None:
    x, codebook = torch.randn(30, 3, 4), torch.randn(3, 9, 4)
    bits = EntropyLoss(base=2.0)(x, codebook)
    each = [EntropyLoss()(x[:, g], codebook[g]) for g in range(3)]
    torch.testing.assert_close(bits * math.log(2), torch.stack(each).mean())


@pytest.mark.parametrize(("temperature", "scale"), [(0.01, 1.0), (1.0, 1.0), (1.0, 8**-0.5), (50.0, 1.0)])
def test_sign_entropy_is_that_of_all_sign_codes(temperature: float, scale: float) -> None:
    x, weight = 0.3 * torch.randn(40, 8), torch.rand(40)
    factorised = sign_entropy(x, temperature=temperature, scale=scale, weight=weight)
    codes = sign_codes(8, scale)
    full = soft_assignment_entropy(x, codes, metric="dot", temperature=temperature, weight=weight)
    torch.testing.assert_close(factorised.sample, full.sample, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(factorised.mean_bits, full.mean_assignment @ (codes > 0).float(), rtol=1e-4, atol=1e-6)
    assert factorised.usage >= full.usage - 1e-4
    # one vector: the mean is a product
    one = sign_entropy(x[:1], temperature=temperature, scale=scale)
    alone = soft_assignment_entropy(x[:1], codes, metric="dot", temperature=temperature)
    torch.testing.assert_close(one.usage, alone.usage, rtol=1e-4, atol=1e-5)


def test_sign_entropy_gradient_is_that_of_all_sign_codes() -> None:
    x = 0.3 * torch.randn(40, 6, dtype=torch.float64)
    codes = sign_codes(6).double()
    factorised = with_gradients(lambda x, c: sign_entropy(x, temperature=0.3).sample + 0 * c.sum(), x, codes)
    full = with_gradients(lambda x, c: soft_assignment_entropy(x, c, metric="dot", temperature=0.3)[0], x, codes)
    torch.testing.assert_close(factorised[1], full[1])


def test_sign_entropy_of_weights_whose_sum_overflows() -> None:
    x, weight = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, dtype=torch.float64) + 0.5
    expected = sign_entropy(x, weight=weight)
    for scale in (2.0**1022, 2.0**-1022):
        for got, one in zip(sign_entropy(x, weight=scale * weight), expected, strict=True):
            torch.testing.assert_close(got, one)


def test_sign_entropy_of_extremes_and_outcasts() -> None:
    x = torch.full((4, 3), 1e4)
    x[1], x[2, 0] = -1e4, torch.nan
    x.requires_grad_()
    result = sign_entropy(x, weight=torch.tensor([True, True, True, False]))
    assert result.mean_bits.tolist() == [0.5, 0.5, 0.5]
    assert result.usage.item() == pytest.approx(3 * math.log(2))
    (result.sample + result.usage).backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    for name in ("temperature", "scale"):
        with pytest.raises(ValueError, match=f"{name}: expected a finite number > 0"):
            sign_entropy(x, **{name: 0.0})
    for options in ({"temperature": 1e-320}, {"scale": 1e300}):
        with pytest.raises(ValueError, match=r"^temperature: expected at least scale / 2\^126 = .*, got "):
            sign_entropy(x, **options)


@pytest.mark.parametrize("weight", [torch.nan, torch.inf, -torch.inf, -1.0])
def test_a_weight_that_is_none_leaves_its_vector_out(weight: float) -> None:
    x, codebook = torch.randn(5, 3), torch.randn(4, 3)
    weights = torch.rand(5)
    for entropies in (sign_entropy, lambda x, weight: soft_assignment_entropy(x, codebook, weight=weight)):
        without = entropies(x[1:], weight=weights[1:])
        with_it = entropies(x, weight=torch.cat([torch.tensor([weight]), weights[1:]]))
        torch.testing.assert_close(with_it, without)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("weight", [1.0, 3e38])
def test_sign_entropy_of_bits_that_are_certain(weight: float, dtype: torch.dtype) -> None:
    x = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=dtype) * torch.finfo(dtype).max
    x.requires_grad_()
    sample, usage, mean_bits = sign_entropy(x, scale=2**70, weight=torch.full((2,), weight))
    assert (sample.item(), mean_bits.tolist()) == (0.0, [0.5, 0.0])
    assert usage.item() == pytest.approx(math.log(2), rel=float(torch.finfo(dtype).eps))
    (sample + usage).backward()
    assert x.grad is not None
    assert not x.grad.any()


def batch(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Different numbers of vectors and of masked ones; rank 1 has none that counts in the last group."""
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(20 + 7 * rank, 2, 3, generator=generator)
    weight = torch.rand(x.shape[:2], generator=generator)
    if rank == 1:
        weight[:, 1] = 0
    return x, weight


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    codebook = torch.linspace(-1, 1, 30).reshape(2, 5, 3).requires_grad_()
    x, weight = batch(rank)
    x.requires_grad_()
    result = soft_assignment_entropy(x, codebook, temperature=0.5, weight=weight, reduce=all_reduce)
    (result.sample - result.usage).sum().backward()
    assert codebook.grad is not None
    dist.all_reduce(codebook.grad)
    torch.save({"result": tuple(result), "dx": x.grad, "dcodebook": codebook.grad / 2}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.multiproc
def test_two_processes_are_one(tmp_path: Path) -> None:
    """Means over both; gradients averaged over processes are those of the whole batch, and bits agree."""
    run_processes(worker, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    codebook = torch.linspace(-1, 1, 30).reshape(2, 5, 3).requires_grad_()
    x, weight = (torch.cat(parts) for parts in zip(batch(0), batch(1), strict=True))
    x.requires_grad_()
    whole = soft_assignment_entropy(x, codebook, temperature=0.5, weight=weight)
    (whole.sample - whole.usage).sum().backward()
    for rank, saved in enumerate(ranks):
        for value, other, expected in zip(saved["result"], ranks[0]["result"], whole, strict=True):
            assert torch.equal(value, other)
            torch.testing.assert_close(value, expected.detach())
        torch.testing.assert_close(saved["dcodebook"], codebook.grad)
        # a gradient of a rank's own vectors is not averaged: it counts for every rank's loss
        assert x.grad is not None
        torch.testing.assert_close(saved["dx"] / 2, x.grad.split([20, 27])[rank])
