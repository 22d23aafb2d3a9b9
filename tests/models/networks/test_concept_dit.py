"""SEMANTICIST's decoder. Oracles: the count of DiT, what a prefix may tell, shares of a uniform draw."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from network_checks import (
    assert_bf16_is_near,
    assert_checkpointing_changes_nothing,
    assert_close_to_float64,
    assert_learns,
    disturb,
    millions,
)

from models.networks.concept_dit import (
    ConceptDiT,
    ConceptDiTConfig,
    concept_dit_pocket,
    draw_dropped,
    draw_prefixes,
    with_nulls,
)
from models.networks.dit import DiT, DiTConfig, dit_b, dit_l, dit_xl

TINY = ConceptDiTConfig(dit=DiTConfig(layers=2, width=32, heads=4), repa_layer=1, repa_hidden=24, repa_features=10)


def tiny(config: ConceptDiTConfig = TINY) -> ConceptDiT:
    """With gates open: at the start no block does anything."""
    network = ConceptDiT(config, 6, tokens=5, channels=3, grid=(4, 6))
    disturb(network)
    return network


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, 4, 6), torch.rand(batch) * 1000, torch.randn(batch, 5, 6)


@pytest.mark.parametrize("config", [dit_b(), dit_l(), dit_xl()])
def test_numbers_of_weights_are_those_of_dit_and_a_few(config: DiTConfig) -> None:
    with torch.device("meta"):
        plain = DiT(config, channels=16, grid=(16, 16), num_classes=0)
        network = ConceptDiT(ConceptDiTConfig(dit=config), 16, tokens=256, channels=16, grid=(16, 16))
        repa = ConceptDiT(ConceptDiTConfig(dit=config, repa_layer=8), 16, tokens=256, channels=16, grid=(16, 16))
    assert round((millions(network) - millions(plain)) * 1e6) == 256 * 16 + (16 + 1) * config.width
    mlp = (config.width + 1) * 2048 + 2049 * 2048 + 2049 * 768
    assert round((millions(repa) - millions(network)) * 1e6) == mlp


def test_the_default_is_large_and_the_pocket_network_small() -> None:
    with torch.device("meta"):
        large = ConceptDiT(ConceptDiTConfig(), 16, tokens=256, channels=16, grid=(16, 16))
        pocket = ConceptDiT(concept_dit_pocket(), 16, tokens=16, channels=12, grid=(16, 16))
    assert round(millions(large)) == 457
    assert 0.5 < millions(pocket) < 1.5


def test_shapes_gradients_precisions_and_checkpointing() -> None:
    network = tiny()
    latent, time, concepts = inputs()
    keep = torch.tensor([2, 5])
    output, features = network.with_features(latent, time, concepts, keep)
    assert output.shape == (2, 6, 4, 6)
    assert features.shape == (2, 10, 2, 3)

    def run() -> torch.Tensor:
        return torch.cat([part.flatten() for part in network.with_features(latent, time, concepts, keep)])

    assert_learns(run, network)
    plain = tiny(dataclasses.replace(TINY, repa_layer=0))
    assert_bf16_is_near(plain, latent, time, concepts)
    assert_checkpointing_changes_nothing(plain, latent, time, concepts)


def test_the_output_starts_at_zero_and_features_do_not_change_it() -> None:
    latent, time, concepts = inputs()
    fresh = ConceptDiT(TINY, 6, tokens=5, channels=3, grid=(4, 6))
    assert not fresh(latent, time, concepts).any()
    network = tiny()
    assert torch.equal(network(latent, time, concepts), network.with_features(latent, time, concepts)[0])


@torch.no_grad()
def test_features_are_those_after_their_block() -> None:
    """A network cut off after that block has the same."""
    latent, time, concepts = inputs()
    network = tiny()
    cut = ConceptDiT(
        dataclasses.replace(TINY, dit=dataclasses.replace(TINY.dit, layers=1)), 6, tokens=5, channels=3, grid=(4, 6)
    )
    cut.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("blocks.1.")})
    ours, theirs = (net.with_features(latent, time, concepts) for net in (network, cut))
    torch.testing.assert_close(ours[1], theirs[1])
    assert not torch.allclose(ours[0], theirs[0])


@torch.no_grad()
def test_only_the_prefix_is_seen() -> None:
    network = tiny()
    latent, time, concepts = inputs()
    keep = torch.tensor([0, 3])
    other = concepts.clone()
    other[0], other[1, 3:] = torch.randn(5, 6), torch.randn(2, 6)
    assert torch.equal(network(latent, time, other, keep), network(latent, time, concepts, keep))
    other[1, 2] += 1
    assert not torch.equal(network(latent, time, other, keep)[1], network(latent, time, concepts, keep)[1])
    whole = torch.tensor([5, 5])
    assert torch.equal(network(latent, time, concepts, whole), network(latent, time, concepts))
    assert_close_to_float64(_Fixed(network, time, concepts), latent, network(latent, time, concepts))


class _Fixed(torch.nn.Module):
    def __init__(self, network: ConceptDiT, time: torch.Tensor, concepts: torch.Tensor) -> None:
        super().__init__()
        self.network, self.time, self.concepts = network, time, concepts

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.network(latent, self.time.to(latent.dtype), self.concepts.to(latent.dtype))


def test_nulls_take_the_places_of_the_tokens_left_out() -> None:
    concepts, nulls = torch.randn(3, 4, 2), torch.randn(1, 4, 2)
    mixed = with_nulls(concepts, nulls, torch.tensor([0, 1, 4]))
    expected = torch.stack([nulls[0], torch.cat([concepts[1, :1], nulls[0, 1:]]), concepts[2]])
    assert torch.equal(mixed, expected)


@pytest.mark.parametrize(("scheme", "first"), [("released", 1), ("paper", 0)])
def test_prefixes_are_drawn_uniformly(scheme: str, first: int) -> None:
    generator = torch.Generator().manual_seed(0)
    keep = draw_prefixes(8000, 4, scheme=scheme, generator=generator)  # type: ignore[arg-type]
    values, counts = keep.unique(return_counts=True)
    assert values.tolist() == list(range(first, first + 4))
    assert (counts / 8000 - 0.25).abs().max() < 0.025  # five standard deviations


def test_before_nesting_all_or_nothing_is_kept() -> None:
    keep = draw_dropped(8000, 4, probability=0.1, generator=torch.Generator().manual_seed(0))
    assert keep.unique().tolist() == [0, 4]
    assert (keep == 0).float().mean().item() == pytest.approx(0.1, abs=0.017)
    assert draw_dropped(50, 4, probability=0.0).tolist() == [4] * 50


def test_configs_and_tokens_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="repa_layer: expected a block from 1 to 24 or 0, got 25"):
        ConceptDiTConfig(repa_layer=25)
    latent, time, concepts = inputs()
    with pytest.raises(ValueError, match=r"concepts: expected \[B, 5, 6\], got \(2, 4, 6\)"):
        tiny()(latent, time, concepts[:, :4])
    with pytest.raises(ValueError, match="repa_layer: expected the block whose patches are projected, got 0"):
        tiny(dataclasses.replace(TINY, repa_layer=0)).with_features(latent, time, concepts)
