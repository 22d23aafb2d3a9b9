"""The losses of LFQ where they differ from the original on purpose: masks, few vectors, processes, memory.

Oracles: the definition over all words, the vectors kept without the others, one process with both batches, and the
general operator.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from rounding import farthest, in_their_last_bits

import vqkernels
import vqkernels.compat.vector_quantize_pytorch as adapters
from vqkernels.compat.vector_quantize_pytorch._sign_codes import sign_code_entropy
from vqkernels.testing import assert_within_budget, peak_memory_growth

each = pytest.mark.parametrize


def bit_entropies(odds: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropies by their definition, over all words of the bits: oracle of the factorised ones."""
    d = odds.shape[-1]
    words = torch.arange(2**d)[:, None] >> torch.arange(d - 1, -1, -1) & 1
    p = (odds @ words.T.to(odds.dtype)).softmax(-1)  # [N, C, K]

    def entropy(q: torch.Tensor) -> torch.Tensor:
        return -(q * q.clamp(min=eps).log()).sum(-1).mean(-1)

    share = weight / weight.sum()
    return share @ entropy(p), entropy(torch.einsum("n,nck->ck", share, p))


@each("codebooks", [1, 2])
def test_masked_entropies_are_those_of_the_vectors_kept(codebooks: int) -> None:
    module = adapters.LFQ(codebook_size=16, num_codebooks=codebooks, commitment_loss_weight=0.5)
    x, mask = torch.randn(2, 20, 4 * codebooks), torch.rand(2, 20) < 0.6
    masked = module(x, mask=mask, return_loss_breakdown=True, inv_temperature=3.0)[1]
    kept = module(x[mask][None], return_loss_breakdown=True, inv_temperature=3.0)[1]
    torch.testing.assert_close(masked, kept)
    image = module(x.view(2, 4, 5, -1).movedim(-1, 1), 3.0, True, mask.view(2, 4, 5))[1]
    assert image == masked


@each("kind", ["LFQ", "ResidualLFQ"])
def test_a_mask_of_whole_sequences_and_images(kind: str) -> None:
    options: dict[str, Any] = {"codebook_size": 16, "commitment_loss_weight": 0.5}
    module = adapters.LFQ(**options) if kind == "LFQ" else adapters.ResidualLFQ(dim=4, num_quantizers=2, **options)
    keep = torch.tensor([True, False, True])
    for x in (torch.randn(3, 20, 4), torch.randn(3, 4, 2, 5)):
        whole = module(x, mask=keep)
        torch.testing.assert_close(whole[2], module(x[keep])[2])
        assert whole[0].shape == x.shape


@each("fraction", [1.0, 0.3])
@each("rows", ["none", "masked", "not finite"])
def test_vectors_left_out_of_the_loss(rows: str, fraction: float) -> None:
    """No vector at all, or one that counts among some that do not: finite, with the loss of the one."""
    module = adapters.LFQ(dim=4, commitment_loss_weight=1.0, frac_per_sample_entropy=fraction)
    x = torch.randn(1, 4, 4, requires_grad=True)
    if rows == "none":
        loss = module(x, mask=torch.zeros(1, 4, dtype=torch.bool)).entropy_aux_loss
        assert loss.item() == 0
    else:
        only = torch.tensor([[False, True, False, False]])
        spoilt = torch.where(only[..., None], x, torch.nan) if rows == "not finite" else x
        loss = module(spoilt, mask=only if rows == "masked" else None).entropy_aux_loss
        torch.testing.assert_close(loss, module(x[:, 1:2]).entropy_aux_loss)
    loss.backward()
    assert bool(x.grad.isfinite().all())


def test_a_fraction_is_drawn_among_the_vectors_kept() -> None:
    """All kept vectors are alike, so that any of them has the entropies of all."""
    module = adapters.LFQ(dim=4, frac_per_sample_entropy=0.25)
    x, mask = torch.randn(1, 40, 4), torch.rand(1, 40) < 0.5
    x[mask] = torch.tensor([0.1, -0.2, 0.3, 0.0])
    sampled = module(x, 3.0, True, mask)[1]
    whole = adapters.LFQ(dim=4)(x[mask][None, :1], 3.0, True)[1]
    torch.testing.assert_close(sampled, whole)


@each("d", [1, 2, 7, 10])
@each("size", [0.01, 1.0, 30.0])
def test_entropies_follow_their_definition(d: int, size: float) -> None:
    odds, weight = size * torch.randn(20, 2, d), torch.rand(20).round()

    def results(call: Callable[..., tuple[torch.Tensor, torch.Tensor]], odds: torch.Tensor) -> list[torch.Tensor]:
        x = odds.clone().requires_grad_()
        sample, usage = call(x, weight.to(x.dtype), eps=1e-5)
        (sample - 3 * usage).backward()
        # entropies are sums of 2^d terms; the gradient is a share of 1 / N of them
        return [1 + sample.detach(), 1 + usage.detach(), 1 + 20 * x.grad]

    exact = results(bit_entropies, odds.double())
    runs = [results(bit_entropies, moved) for (moved,) in in_their_last_bits([odds])]
    for actual, truth, *plain in zip(results(sign_code_entropy, odds), exact, *runs, strict=True):
        assert_within_budget(actual, truth, farthest(truth, plain), factor=4)


def test_entropies_are_those_of_the_general_operator() -> None:
    """Oracle: the entropies of soft assignments to any codebook, here the one that is implied."""
    module = adapters.LFQ(dim=7, spherical=True, codebook_scale=0.7)
    x = torch.randn(1, 60, 7)
    breakdown = module(x, inv_temperature=5.0, return_loss_breakdown=True)[1]
    expected = vqkernels.soft_assignment_entropy(
        module.maybe_l2norm(x[0]).double(),
        module.maybe_l2norm(module.codebook).double(),
        metric="dot",
        temperature=0.1,
        smoothing="clamp",
        eps=1e-5,
    )
    # entropies of up to log K, each a sum of K terms in float32
    slack = 7 * 0.7 * 2**7 * torch.finfo(torch.float32).eps
    assert abs(breakdown.per_sample_entropy.item() - expected.sample.item()) < slack
    assert abs(breakdown.batch_entropy.item() - expected.usage.item()) < slack


def test_entropy_of_many_codes_in_little_memory() -> None:
    """16 MiB of factors and 1 MiB of codes, a few of each, where the N x K matrix alone has 2 GiB."""
    setup = """
import torch
from vqkernels.compat.vector_quantize_pytorch import LFQ
torch.set_num_threads(1)
module = LFQ(dim=18)
module(torch.randn(1, 16, 18, requires_grad=True)).entropy_aux_loss.backward()
x = torch.randn(1, 2048, 18, requires_grad=True)
"""
    growth = peak_memory_growth(setup, "module(x).entropy_aux_loss.backward()")
    assert growth < 40 * (2 * 2048 * 512 * 4 + 2**18 * 4)
    assert growth < 2048 * 2**18 * 4 / 4


def test_no_entropy_at_weight_zero() -> None:
    """2^40 codes: their entropies would not fit."""
    module = adapters.LFQ(dim=40, entropy_loss_weight=0.0, commitment_loss_weight=1.0)
    x = torch.randn(1, 5, 40)
    torch.testing.assert_close(module(x).entropy_aux_loss, (x.abs() - 1).square().mean())


def distributed_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    module = adapters.LFQ(dim=4, frac_per_sample_entropy=1.0)  # before there is anybody to talk to
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    x, mask = distributed_batch()
    x = x[rank].requires_grad_()
    module.diversity_gamma = 1.0
    breakdown = module(x, 3.0, True, mask[rank])[1]
    breakdown.batch_entropy.backward()
    stack = adapters.ResidualFSQ(levels=[5, 5], num_quantizers=8, quantize_dropout=True)
    torch.manual_seed(rank)
    depths = [int((stack(torch.randn(1, 1, 2))[1] >= 0).sum()) for _ in range(8)]
    torch.save((breakdown.batch_entropy.detach(), x.grad, depths), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def distributed_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(2, 1, 12, 4, generator=generator), torch.rand(2, 1, 12, generator=generator) < 0.5


@pytest.mark.slow
@pytest.mark.multiproc
def test_mean_assignment_of_two_processes(tmp_path: Path) -> None:
    """One process that sees both batches has the same entropy, and half the gradient, as DDP's average halves it."""
    run_processes(distributed_worker, args=(str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    x, mask = distributed_batch()
    together = torch.cat([x[0], x[1]], dim=1).requires_grad_()
    usage = adapters.LFQ(dim=4)(together, 3.0, True, torch.cat([mask[0], mask[1]], dim=1))[1].batch_entropy
    usage.backward()
    for rank, (entropy, gradient, _) in enumerate(results):
        torch.testing.assert_close(entropy, usage.detach())
        torch.testing.assert_close(gradient / 2, together.grad[:, 12 * rank : 12 * rank + 12])
    assert results[0][2] == results[1][2]
    assert len(set(results[0][2])) > 1
