"""DiT and SiT: published sizes, the identity at the start, positions, one shared embedder, errors."""

from __future__ import annotations

import math

import pytest
import torch

from models.networks.dit import DiT, DiTBlock, DiTConfig, SiT, TimestepEmbedder, dit_b, dit_l, dit_xl, sincos_2d


def tiny(network: type[DiT] = DiT, *, num_classes: int = 3, learned_sigma: bool = True) -> DiT:
    torch.manual_seed(0)
    config = DiTConfig(layers=2, width=16, heads=2, patch_size=2, learned_sigma=learned_sigma)
    return network(config, channels=3, grid=(4, 6), num_classes=num_classes).double()


def awake(network: DiT) -> DiT:
    """Weights that start at zero made random, so that every path carries something."""
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return network


@pytest.mark.parametrize(("config", "millions"), [(dit_b(), 130), (dit_l(), 458), (dit_xl(), 675)])
@pytest.mark.parametrize("network", [DiT, SiT])
def test_parameter_counts_are_the_published_ones(network: type[DiT], config: DiTConfig, millions: int) -> None:
    with torch.device("meta"):
        built = network(config, channels=4, grid=(32, 32), num_classes=1000)
    assert round(sum(p.numel() for p in built.parameters()) / 1e6) == millions


def test_xl_on_the_latents_of_vqgan_lc_keeps_its_size() -> None:
    with torch.device("meta"):
        built = DiT(dit_xl(), channels=8, grid=(16, 16), num_classes=1000)
    assert round(sum(p.numel() for p in built.parameters()) / 1e6) == 675


def test_blocks_start_as_the_identity_and_the_output_at_zero() -> None:
    x, condition = torch.randn(2, 5, 16), torch.randn(2, 16)
    assert torch.equal(DiTBlock(16, 2)(x, condition), x)
    latent = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    out = tiny()(latent, torch.tensor([0, 999]), torch.tensor([0, 3]))
    assert out.shape == (2, 6, 4, 6)
    assert not out.any()


def test_positions_are_the_closed_form() -> None:
    width, height, columns = 8, 3, 5
    found = sincos_2d(width, height, columns)
    for row in range(height):
        for column in range(columns):
            waves = []
            for where in (column, row):
                angles = [where / 10000 ** (i / 2) for i in range(2)]
                waves += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(found[row * columns + column], torch.tensor(waves), rtol=0, atol=1e-7)


def test_patches_return_to_their_place() -> None:
    """A network that passes patches through: what goes in at a cell comes out at that cell."""
    network = DiT(DiTConfig(layers=1, width=16, heads=1, learned_sigma=False), channels=4, grid=(4, 6), num_classes=0)
    network.positions.zero_()
    with torch.no_grad():
        # width 16 = 4 channels x 2 x 2: embed as the identity; the final norm is undone by knowing it
        network.embed.weight.copy_(torch.eye(16))
        order = torch.arange(16).view(4, 2, 2).permute(1, 2, 0).reshape(-1)  # (C, p, p) -> (p, p, C)
        network.final.output.weight.copy_(torch.eye(16)[order])
    network.final.norm = torch.nn.Identity()
    latent = torch.randn(2, 4, 4, 6)
    torch.testing.assert_close(network(latent, torch.zeros(2)), latent)


def test_time_and_class_and_position_matter() -> None:
    network = awake(tiny())
    latent = torch.randn(1, 3, 4, 6, dtype=torch.float64)
    base = network(latent, torch.tensor([5]), torch.tensor([1]))
    assert not torch.allclose(base, network(latent, torch.tensor([6]), torch.tensor([1])))
    assert not torch.allclose(base, network(latent, torch.tensor([5]), torch.tensor([3])))
    constant = network(torch.ones_like(latent), torch.tensor([5]), torch.tensor([1]))
    assert not torch.allclose(constant[..., :2, :2], constant[..., 2:, :2])


def test_sit_is_the_first_half_of_dit() -> None:
    dit, sit = awake(tiny()), tiny(SiT)
    sit.load_state_dict(dit.state_dict())
    arguments = torch.randn(2, 3, 4, 6, dtype=torch.float64), torch.tensor([0.25, 0.5]), torch.tensor([0, 1])
    assert torch.equal(sit(*arguments), dit(*arguments)[:, :3])


def test_times_of_half_precision_networks_stay_apart() -> None:
    embedder = TimestepEmbedder(16).bfloat16()
    late = embedder(torch.tensor([998, 999]))
    assert not torch.equal(late[0], late[1])


def test_checkpointing_gives_the_same_gradients() -> None:
    network = awake(tiny())
    arguments = torch.randn(2, 3, 4, 6, dtype=torch.float64), torch.tensor([1, 2]), torch.tensor([0, 1])
    plain = torch.autograd.grad(network(*arguments).square().mean(), list(network.parameters()))
    network.gradient_checkpointing = True
    again = torch.autograd.grad(network(*arguments).square().mean(), list(network.parameters()))
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b)


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match=r"^width: expected a multiple of 4 and of 3 heads, got 16$"):
        DiTConfig(width=16, heads=3)
    with pytest.raises(ValueError, match=r"^grid: expected sides that patches of 2 divide, got \(3, 4\)"):
        DiT(DiTConfig(layers=1, width=16, heads=1), channels=3, grid=(3, 4), num_classes=0)
    latent, time = torch.zeros(1, 3, 4, 6, dtype=torch.float64), torch.zeros(1)
    with pytest.raises(ValueError, match=r"^labels: expected one class per latent, got none$"):
        tiny()(latent, time)
    with pytest.raises(ValueError, match=r"^labels: expected none from an unconditional network, got \(1,\)$"):
        tiny(num_classes=0)(latent, time, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^latent: expected \[B, 3, 4, 6\], got \(1, 3, 6, 4\)$"):
        tiny()(latent.mT, time, torch.zeros(1, dtype=torch.int64))
