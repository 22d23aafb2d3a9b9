"""Losses of the priors of codes: chunked cross entropy, corruption, masks, scored frames, and that they train."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.losses.cross_entropy import linear_cross_entropy
from models.networks.code_shape import CodeShape
from models.networks.depth_head import DepthHeadConfig
from models.networks.gpt import GPTConfig
from models.priors.autoregressive import AutoregressiveConfig, AutoregressivePrior
from models.priors.corruption import drop_labels, replace_codes
from models.priors.grouped import GroupedConfig, GroupedPrior
from models.priors.masked import MaskedConfig, MaskedPrior, random_masks
from models.priors.video import VideoConfig, VideoPrior
from vqkernels.testing import peak_memory_growth

TINY = GPTConfig(layers=2, heads=2, width=32, dropout=0.0, embedding_dropout=0.0)
CODES = CodeShape(num_codes=11, grid=(3, 4), num_classes=2)
GROUPS = dataclasses.replace(CODES, groups=4, code_dim=8)


def prior_of(kind: str) -> nn.Module:
    """A tiny prior of each kind."""
    torch.manual_seed(0)
    if kind == "autoregressive":
        return AutoregressivePrior(AutoregressiveConfig(network=TINY), CODES)
    if kind == "video":
        return VideoPrior(VideoConfig(network=TINY), dataclasses.replace(CODES, frames=3))
    if kind == "masked":
        # rotary, a grid of masks would look alike everywhere but for the prefix
        network = dataclasses.replace(TINY, causal=False, positions="learned")
        return MaskedPrior(MaskedConfig(network=network), CODES)
    head = DepthHeadConfig(structure=kind)  # type: ignore[arg-type]
    return GroupedPrior(GroupedConfig(network=TINY, head=head), GROUPS)


KINDS = ["autoregressive", "video", "masked", "groups", "residual", "parallel"]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_chunks_change_neither_value_nor_gradient(label_smoothing: float, dtype: torch.dtype) -> None:
    hidden, weight = torch.randn(50, 8, dtype=dtype), torch.randn(37, 8, dtype=dtype)
    targets, upstream = torch.randint(37, (50,)), torch.randn(50, dtype=dtype)
    results = []
    for logits_at_once in (None, 37 * 50, 37 * 16, 1):
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if logits_at_once is None:
            loss = F.cross_entropy(
                leaves[0] @ leaves[1].T, targets, reduction="none", label_smoothing=label_smoothing
            )
        else:
            entropy = linear_cross_entropy(
                *leaves, targets, label_smoothing=label_smoothing, logits_at_once=logits_at_once
            )
            loss = entropy.loss
            torch.testing.assert_close(entropy.nll, F.cross_entropy(hidden @ weight.T, targets, reduction="none"))
        results.append((loss.detach(), *torch.autograd.grad(loss @ upstream, leaves)))
    for result in results[1:]:
        for found, expected in zip(result, results[0], strict=True):
            torch.testing.assert_close(found, expected)


def test_autocast_computes_in_its_type_and_answers_in_float32() -> None:
    hidden, weight = torch.randn(40, 8), torch.randn(37, 8, requires_grad=True)
    targets = torch.randint(37, (40,))
    exact = linear_cross_entropy(hidden, weight, targets).nll
    for logits_at_once in (10**6, 37 * 8):
        with torch.autocast("cpu", torch.bfloat16):
            nll = linear_cross_entropy(hidden, weight, targets, logits_at_once=logits_at_once).nll
        assert nll.dtype == torch.float32
        # a logit is a sum of 8 products of numbers rounded to 8 bits, the loss a difference of two such
        budget = 2**-8 * 4 * (hidden.abs() @ weight.abs().T).max()
        assert 0 < (nll - exact).abs().max() < budget
        (gradient,) = torch.autograd.grad(nll.sum(), weight)
        assert gradient.dtype == torch.float32


# the step holds the gradients of both code tables, not the logits
MEMORY_SETUP = """
import torch
from models.networks.code_shape import CodeShape
from models.networks.gpt import GPTConfig
from models.priors.autoregressive import AutoregressiveConfig, AutoregressivePrior
torch.manual_seed(0)
network = GPTConfig(style="mingpt", positions="learned", layers=2, heads=2, width={W})
prior = AutoregressivePrior(AutoregressiveConfig(network=network, pkeep=0.8), CodeShape(num_codes={K}, grid=(16, 16)))
prior.gpt.gradient_checkpointing = True
optimizer = torch.optim.AdamW(prior.parameters())
def step(batch):
    prior(torch.randint({K}, (batch, 16, 16)))["loss"].backward()
    optimizer.step()
    optimizer.zero_grad()
step(1)
"""


def test_a_step_never_holds_the_logits_of_its_batch() -> None:
    """8 x 256 positions of 30,000 codes: 246 MB of logits, and as much for their gradient."""
    growth = peak_memory_growth(MEMORY_SETUP.format(K=30_000, W=64), "step(8)", env={"OMP_NUM_THREADS": "1"})
    assert growth < 8 * 256 * 30_000 * 4


@pytest.mark.slow
def test_a_step_over_100_000_codes_fits_a_gigabyte() -> None:
    """64 x 256 = 16,384 positions, beyond weights and optimizer; their logits alone would be 6.5 GB."""
    assert peak_memory_growth(MEMORY_SETUP.format(K=100_000, W=128), "step(64)") < 1e9


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_at_the_start_is_that_of_a_guess(kind: str) -> None:
    prior = prior_of(kind).eval()
    codes = torch.randint(11, (4, *prior.codes.shape))
    losses = prior(codes, torch.tensor([0, 1, 0, 1]))
    assert losses["loss"] == losses["nll"], "in evaluation mode"
    assert abs(losses["nll"] - math.log(11)) < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_prior_learns_a_batch_by_heart(kind: str) -> None:
    """What follows from nothing but the class is learned to nearly nothing, codes given by the class too."""
    prior = prior_of(kind)
    codes = torch.randint(11, (2, *prior.codes.shape), generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1])
    prior.config = dataclasses.replace(prior.config, class_dropout=0.0, label_smoothing=0.0)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-2, weight_decay=0.0)
    generator = torch.Generator().manual_seed(2)
    for _ in range(120):
        optimizer.zero_grad()
        prior(codes, labels, generator)["loss"].backward()
        optimizer.step()
    assert prior.eval()(codes, labels, generator)["nll"] < 0.1


def test_grouped_loss_is_the_mean_over_positions_and_groups(awake: Callable[[nn.Module], nn.Module]) -> None:
    for structure in ("groups", "parallel"):
        prior = awake(prior_of(structure))
        codes, labels = torch.randint(11, (2, 3, 4, 4)), torch.tensor([0, 1])
        hidden = prior.gpt(codes.flatten(1, 2)[:, :-1], labels)
        total = torch.zeros((), dtype=torch.float64)
        for position in range(12):
            index = codes.flatten(1, 2)[:, position]
            for group in range(4):
                logits = prior.head.next_logits(hidden[:, position], index[:, :group])
                total += F.cross_entropy(logits, index[:, group])
        torch.testing.assert_close(prior(codes, labels)["nll"], total / 48)


def test_video_scores_the_next_frame_or_all(awake: Callable[[nn.Module], nn.Module]) -> None:
    prior = awake(prior_of("video"))
    codes, labels = torch.randint(11, (2, 3, 3, 4)), torch.tensor([0, 1])
    logits = prior.gpt.head(prior.gpt(codes.flatten(1)[:, :-1], labels))
    each = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view(2, 36)
    torch.testing.assert_close(prior(codes, labels)["nll"], each[:, 24:].mean())
    prior.config = dataclasses.replace(prior.config, scored="all")
    torch.testing.assert_close(prior(codes, labels)["nll"], each.mean())


def test_masked_loss_is_about_the_hidden_codes(awake: Callable[[nn.Module], nn.Module]) -> None:
    prior = awake(prior_of("masked"))
    codes, labels = torch.randint(11, (2, 3, 4)), torch.tensor([0, 1])
    found = prior(codes, labels, torch.Generator().manual_seed(3))["nll"]
    masks = random_masks((2, 12), codes.device, torch.Generator().manual_seed(3))
    logits = prior.gpt.head(prior.gpt(torch.where(masks, 11, codes.flatten(1)), labels)[:, 1:])
    torch.testing.assert_close(found, F.cross_entropy(logits[masks], codes.flatten(1)[masks]))


def test_masks_follow_the_cosine() -> None:
    masks = random_masks((20_000, 16), torch.device("cpu"), torch.Generator().manual_seed(0))
    counts = masks.sum(1)
    assert counts.min() == 1
    # share > x where r < acos(x) 2/pi; the count passes 8 where the share passes 8.5 / 16
    expected = math.acos(8.5 / 16) * 2 / math.pi
    deviation = math.sqrt(expected * (1 - expected) / 20_000)
    assert abs((counts > 8).double().mean().item() - expected) < 5 * deviation
    each = masks.double().mean(0)
    assert (each - each.mean()).abs().max() < 5 * 0.5 / math.sqrt(20_000), "every position alike"


def test_corruption_is_of_training_and_of_its_generator() -> None:
    prior = prior_of("autoregressive")
    with torch.no_grad():
        prior.gpt.head.weight.normal_()
    prior.config = dataclasses.replace(prior.config, pkeep=0.5, class_dropout=0.5, label_smoothing=0.1)
    codes, labels = torch.randint(11, (8, 3, 4)), torch.zeros(8, dtype=torch.int64)
    losses = [prior(codes, labels, torch.Generator().manual_seed(seed))["nll"] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    prior.eval()
    losses = [prior(codes, labels, torch.Generator().manual_seed(seed))["nll"] for seed in (0, 1)]
    assert losses[0] == losses[1]


def test_corruption_rates() -> None:
    generator, count = torch.Generator().manual_seed(0), 20_000
    labels = drop_labels(torch.zeros(count, dtype=torch.int64), 0.1, 7, generator)
    assert set(labels.tolist()) == {0, 7}
    assert abs((labels == 7).double().mean() - 0.1) < 5 * math.sqrt(0.09 / count)
    codes = replace_codes(torch.zeros(count, dtype=torch.int64), 0.2, 5, generator)
    assert set(codes.tolist()) == set(range(5))
    assert abs((codes > 0).double().mean() - 0.16) < 5 * math.sqrt(0.16 * 0.84 / count), "a fifth stay by chance"


def test_errors_name_the_argument() -> None:
    prior = prior_of("autoregressive")
    labels = torch.tensor([0])
    with pytest.raises(ValueError, match=r"^codes: expected integers \[B, 3, 4\], got int64 \(1, 4, 3\)$"):
        prior(torch.zeros(1, 4, 3, dtype=torch.int64), labels)
    with pytest.raises(ValueError, match=r"^codes: expected integers \[B, 3, 4\], got float32 \(1, 3, 4\)$"):
        prior(torch.zeros(1, 3, 4), labels)
    with pytest.raises(ValueError, match=r"^groups: expected 1 \(several need the grouped prior\), got 4$"):
        AutoregressivePrior(AutoregressiveConfig(network=TINY), GROUPS)
    with pytest.raises(ValueError, match=r"^groups: expected at least 2, got 1$"):
        GroupedPrior(GroupedConfig(network=TINY, head=DepthHeadConfig()), CODES)
    with pytest.raises(ValueError, match=r"^groups: expected 1, got 4$"):
        MaskedPrior(MaskedConfig(network=dataclasses.replace(TINY, causal=False)), GROUPS)
    with pytest.raises(ValueError, match=r"^frames: expected at least 2, context and next, got 1$"):
        VideoPrior(VideoConfig(network=TINY), CODES)
    with pytest.raises(ValueError, match=r"^pkeep: expected a share in \(0, 1\], got 0.0$"):
        AutoregressiveConfig(network=TINY, pkeep=0.0)
    with pytest.raises(ValueError, match=r"^class_dropout: expected a share in \[0, 1\), got 1.0$"):
        GroupedConfig(network=TINY, head=DepthHeadConfig(), class_dropout=1.0)
    with pytest.raises(ValueError, match=r"^network.causal: expected True, got False$"):
        AutoregressiveConfig(network=dataclasses.replace(TINY, causal=False))
    with pytest.raises(ValueError, match=r"^network.causal: expected False, got True$"):
        MaskedConfig(network=TINY)
    with pytest.raises(ValueError, match=r"^network.inputs: expected 'indices' or 'vectors', got 'continuous'$"):
        AutoregressiveConfig(network=dataclasses.replace(TINY, inputs="continuous"))
