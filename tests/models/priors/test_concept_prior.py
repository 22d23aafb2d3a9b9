"""Concept prior: the flow head, the loss, sampling with the cache, growing guidance, errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn

from models.networks.code_shape import CodeShape
from models.networks.flow_head import FlowHead, FlowHeadConfig
from models.networks.gpt import GPTConfig, epsilon_llamagen_l
from models.priors.concept import ConceptConfig, ConceptPrior
from models.priors.concept_sampling import sample_concepts
from models.priors.diffusion_sampling import DiffusionSamplingConfig
from models.priors.sample_random import SampleRandom

NETWORK = GPTConfig(
    layers=2, heads=2, width=16, positions="learned", inputs="continuous", dropout=0.0, embedding_dropout=0.0
)
SHAPE = CodeShape(num_codes=0, grid=(1, 5), code_dim=3, num_classes=2)
SDE = DiffusionSamplingConfig(method="sde", steps=4, guidance=3.0)
LABELS = torch.tensor([0, 1, 2])
Awake = Callable[[nn.Module], nn.Module]


def prior_of() -> ConceptPrior:
    torch.manual_seed(0)
    return ConceptPrior(ConceptConfig(network=NETWORK, head=FlowHeadConfig(layers=2, width=32)), SHAPE)


def test_sizes_are_semanticists() -> None:
    """GPT-L without code tables, and 12 blocks of 1536: adaLN of the time 3 W^2, an MLP of 3 W^2."""
    with torch.device("meta"):
        prior = ConceptPrior(
            ConceptConfig(network=epsilon_llamagen_l(), head=FlowHeadConfig()),
            CodeShape(num_codes=0, grid=(1, 32), code_dim=16, num_classes=1000),
        )
    blocks = sum(p.numel() for p in prior.gpt.blocks.parameters() if p.ndim == 2)
    assert blocks == 24 * (4 * 1024**2 + 3 * 1024 * 2816)
    head = sum(p.numel() for p in prior.head.blocks.parameters() if p.ndim == 2)
    assert head == 12 * 6 * 1536**2
    assert prior.gpt.head is None
    assert prior.gpt.cell is not None
    assert prior.gpt.cell.shape == (33, 1024)


def test_the_head_starts_at_zero_and_uses_all_it_gets(awake: Awake) -> None:
    head = FlowHead(FlowHeadConfig(layers=2, width=32), token_dim=3, condition_dim=16)
    tokens, time, condition = torch.randn(4, 3), torch.rand(4), torch.randn(4, 16)
    assert not head(tokens, time, condition).any()
    head = awake(head)
    tokens, condition = tokens.double(), condition.double()
    base = head(tokens, time, condition)
    for changed in ((tokens + 1, time, condition), (tokens, time / 2, condition), (tokens, time, condition + 1)):
        assert (head(*changed) != base).any(dim=1).all()


def test_a_token_is_given_by_the_earlier_ones(awake: Awake) -> None:
    prior = awake(prior_of())
    tokens = torch.randn(3, 5, 3, dtype=torch.float64)
    changed = tokens.clone()
    changed[:, 2] += 1
    before, after = (prior.gpt(x[:, :-1], LABELS) for x in (tokens, changed))
    assert torch.equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).any(dim=2).all()


def test_the_loss_is_that_of_the_flow_at_each_token(awake: Awake) -> None:
    prior = awake(prior_of())
    tokens = torch.randn(3, 5, 3, dtype=torch.float64)
    found = prior(tokens, LABELS, torch.Generator().manual_seed(4))["loss"]
    condition = prior.gpt(tokens[:, :-1], LABELS) + prior.position
    generator = torch.Generator().manual_seed(4)
    time = torch.rand(4 * 15, generator=generator)
    noise = torch.randn(4 * 15, 3, generator=generator, dtype=torch.float64)
    losses = []
    for index in range(4 * 15):
        batch, token = divmod(index % 15, 5)
        t, data = time[index].double(), tokens[batch, token]
        noised = t * data + (1 - t) * noise[index]
        velocity = prior.head(noised[None], time[index][None], condition[batch, token][None])[0]
        losses.append((velocity - (data - noise[index])).square().mean())
    torch.testing.assert_close(found, torch.stack(losses).mean())


def test_a_prior_learns_its_tokens() -> None:
    """One sequence per class: tokens are then given, and sampling finds them again."""
    prior = prior_of()
    prior.config = dataclasses.replace(prior.config, class_dropout=0.0)
    tokens, labels = torch.randn(2, 5, 3), torch.tensor([0, 1])
    optimizer = torch.optim.AdamW(prior.parameters(), lr=5e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(150):
        optimizer.zero_grad()
        prior(tokens.repeat(8, 1, 1), labels.repeat(8), generator)["loss"].backward()
        optimizer.step()
    config = DiffusionSamplingConfig(method="euler", steps=20)
    found = sample_concepts(prior, config, SampleRandom(0, range(2)), labels)
    assert (found - tokens).square().mean() < 0.1 * tokens.square().mean()


@pytest.mark.parametrize("method", ["sde", "euler", "heun"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_cache_changes_no_token(method: str, guidance: float, awake: Awake) -> None:
    prior = awake(prior_of())
    config = dataclasses.replace(SDE, method=method, guidance=guidance)
    cached, whole = (
        sample_concepts(prior, config, SampleRandom(3, range(3)), LABELS, cache=on) for on in (True, False)
    )
    assert cached.shape == (3, 5, 3)
    torch.testing.assert_close(cached, whole, rtol=1e-9, atol=1e-9)


def test_a_sample_does_not_depend_on_its_batch(awake: Awake) -> None:
    prior = awake(prior_of())
    together = sample_concepts(prior, SDE, SampleRandom(3, range(3)), LABELS)
    alone = [sample_concepts(prior, SDE, SampleRandom(3, [i]), LABELS[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-9)


def test_guidance_grows_over_the_tokens(awake: Awake) -> None:
    """The first of five tokens has 1 + 2/5, the last all of 3, as by a constant scale of that size."""
    prior = awake(prior_of())
    grown = sample_concepts(prior, SDE, SampleRandom(3, range(3)), LABELS)
    first = dataclasses.replace(SDE, guidance=1 + 2 / 5)
    constant = sample_concepts(prior, first, SampleRandom(3, range(3)), LABELS, guidance_growth="constant")
    torch.testing.assert_close(grown[:, 0], constant[:, 0])
    assert not torch.allclose(grown[:, 1], constant[:, 1])
    full = sample_concepts(prior, SDE, SampleRandom(3, range(3)), LABELS, guidance_growth="constant")
    assert not torch.allclose(grown[:, 0], full[:, 0])


def test_errors_name_the_argument() -> None:
    prior = prior_of()
    with pytest.raises(ValueError, match=r"^tokens: expected \[B, 5, 3\], got \(3, 4, 3\)$"):
        prior(torch.zeros(3, 4, 3), LABELS)
    with pytest.raises(ValueError, match=r"^labels: expected one class for each of 3 samples, got none$"):
        sample_concepts(prior, SDE, SampleRandom(0, range(3)))
    with pytest.raises(ValueError, match=r"^cfg_channels: expected none for tokens, got 2$"):
        sample_concepts(prior, dataclasses.replace(SDE, cfg_channels=2), SampleRandom(0, range(3)), LABELS)
    with pytest.raises(ValueError, match=r"^method: expected 'euler', 'heun' or 'sde' for a flow, got 'ddim'$"):
        sample_concepts(prior, dataclasses.replace(SDE, method="ddim"), SampleRandom(0, range(3)), LABELS)
    with pytest.raises(ValueError, match=r"^network.inputs: expected 'continuous', got 'indices'$"):
        ConceptConfig(network=GPTConfig(), head=FlowHeadConfig())
    with pytest.raises(ValueError, match=r"^repetitions: expected at least 1, got 0$"):
        ConceptConfig(network=NETWORK, head=FlowHeadConfig(), repetitions=0)
    with pytest.raises(ValueError, match=r"^layers: expected at least 1, got 0$"):
        FlowHeadConfig(layers=0)
