"""Diffusion priors: training, streams of samples, guidance, the UNet, errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from needs import import_library
from torch import nn

from models.networks.dit import DiTConfig
from models.networks.ldm_unet import LDMUNet, UNetConfig, ldm_f8, ldm_f16, ldm_pocket
from models.priors.diffusion import (
    DDPM,
    DDPMConfig,
    DiffusionConfig,
    DiffusionPrior,
    Flow,
    FlowConfig,
)
from models.priors.diffusion_sampling import DiffusionSamplingConfig, sample_latents
from models.priors.sample_random import SampleRandom
from models.recipes import PRIORS

TINY = DiTConfig(layers=2, width=16, heads=2)
LDM = DDPMConfig(betas="sqrt_linear", beta_first=0.0015, beta_last=0.0195, learned_variance=False)
MEAN, SPREAD = 1.5, 0.6  # of the toy data, one number a sample


# the priors


def prior_of(kind: str, num_classes: int = 3) -> DiffusionPrior:
    torch.manual_seed(0)
    if kind == "dit":
        config = DiffusionConfig(network=TINY, process=DDPMConfig())
    elif kind == "sit":
        config = DiffusionConfig(network=TINY, process=FlowConfig())
    else:
        import_library("diffusers")
        config = DiffusionConfig(network=ldm_pocket(), process=LDM)
    return DiffusionPrior(config, channels=4, grid=(4, 4), num_classes=num_classes)


METHODS = {"dit": "ancestral", "sit": "heun", "ldm": "ddim"}


def test_pocket_unet_keeps_the_mean_of_its_input() -> None:
    """Groups of one channel, diffusers' 32 at 32 channels, would normalise it away."""
    for unet in (PRIORS["ldm_pocket"]().prior.network, ldm_pocket()):
        assert unet.base_channels // unet.norm_groups >= 8


@pytest.mark.parametrize(("kind", "rate", "steps"), [("dit", 1e-2, 60), ("sit", 1e-2, 60), ("ldm", 3e-3, 30)])
def test_a_prior_learns_its_data(kind: str, rate: float, steps: int) -> None:
    """One latent per class: the loss falls well below that of knowing nothing, 1 or 2 for standard normal targets."""
    prior = prior_of(kind)
    prior.config = dataclasses.replace(prior.config, class_dropout=0.0)
    latents, labels = torch.randn(2, 4, 4, 4).repeat(8, 1, 1, 1), torch.tensor([0, 1]).repeat(8)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(1)
    name = "loss" if kind == "sit" else "mse"
    history = []
    for _ in range(steps):
        optimizer.zero_grad()
        losses = prior(latents, labels, generator)
        losses["loss"].backward()
        optimizer.step()
        history.append(losses[name].item())
    assert sum(history[-10:]) / 10 < 0.5 * history[0]


@pytest.mark.parametrize("kind", METHODS)
def test_samples_depend_on_seed_and_number_alone(kind: str, awake: Callable[[nn.Module], nn.Module]) -> None:
    prior = awake(prior_of(kind))
    config = DiffusionSamplingConfig(method=METHODS[kind], steps=4, guidance=2.0, eta=1.0)  # type: ignore[arg-type]
    labels = torch.tensor([0, 2, 3])
    together = sample_latents(prior, config, SampleRandom(7, range(3)), labels)
    assert together.shape == (3, 4, 4, 4)
    assert together.isfinite().all()
    alone = [sample_latents(prior, config, SampleRandom(7, [i]), labels[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(together[0], sample_latents(prior, config, SampleRandom(8, [0]), labels[:1])[0])


@pytest.mark.parametrize("channels", [None, 3])
def test_guidance_of_all_or_of_the_first_channels(
    channels: int | None, awake: Callable[[nn.Module], nn.Module]
) -> None:
    """One Euler step: start + u + s(c - u) on the guided channels, start + c on the others."""
    prior = awake(prior_of("sit"))
    labels = torch.tensor([0, 2])
    config = DiffusionSamplingConfig(method="euler", steps=1, guidance=4.0, cfg_channels=channels)
    found = sample_latents(prior, config, SampleRandom(7, range(2)), labels)
    start = SampleRandom(7, range(2)).normal(4, 4, 4).double()
    with_class, without = (
        prior.network(start, torch.zeros(2), rows).detach() for rows in (labels, torch.full_like(labels, 3))
    )
    end = 4 if channels is None else channels
    torch.testing.assert_close(found[:, :end], (start + without + 4 * (with_class - without))[:, :end])
    torch.testing.assert_close(found[:, end:], (start + with_class)[:, end:])


def test_guidance_leaves_the_variance_alone(awake: Callable[[nn.Module], nn.Module]) -> None:
    prior = awake(prior_of("dit"))
    config = DiffusionSamplingConfig(method="ancestral", steps=2, guidance=4.0)
    found = sample_latents(prior, config, SampleRandom(7, [0]), torch.tensor([1]))
    random, process = SampleRandom(7, [0]), prior.process
    x = random.normal(4, 4, 4).double()
    for step, previous in ((999, 0), (0, -1)):
        time, before = torch.tensor([step]), torch.tensor([previous])
        c, u = (prior.network(x, time, torch.tensor([label])).detach() for label in (1, 3))
        noise = u[:, :4] + 4 * (c - u)[:, :4]
        mean, low, high = process.posterior(process.clean(x, time, noise), x, time, before)
        share = (c[:, 4:] + 1) / 2
        x = mean
        if previous >= 0:
            x = x + (share * high + (1 - share) * low).exp().sqrt() * random.normal(4, 4, 4).double()
    torch.testing.assert_close(found, x)


def test_unconditional_priors() -> None:
    for kind, method in METHODS.items():
        prior = prior_of(kind, num_classes=0)
        prior(torch.randn(2, 4, 4, 4))["loss"].backward()
        config = DiffusionSamplingConfig(method=method, steps=2)  # type: ignore[arg-type]
        assert sample_latents(prior, config, SampleRandom(0, range(2))).shape == (2, 4, 4, 4)


# the UNet


@pytest.mark.parametrize(
    ("config", "channels", "grid", "widths", "attends"),
    [
        (ldm_f16(), 8, (16, 16), [256, 1024], [True, False]),
        (ldm_f8(), 4, (32, 32), [256, 512, 1024], [False, True, False]),
    ],
)
def test_the_unet_is_vqgan_lcs(
    config: UNetConfig, channels: int, grid: tuple[int, int], widths: list[int], attends: list[bool]
) -> None:
    import_library("diffusers")
    with torch.device("meta"):
        network = LDMUNet(config, channels=channels, grid=grid, num_classes=1000)
    assert network.label.weight.shape == (1001, 512)
    for level, (width, attend) in enumerate(zip(widths, attends, strict=True)):
        down, up = network.unet.down_blocks[level], network.unet.up_blocks[-1 - level]
        assert len(down.resnets) == config.res_blocks
        assert len(up.resnets) == config.res_blocks + 1
        assert {block.out_channels for block in (*down.resnets, *up.resnets)} == {width}
        for block in (down, up):
            assert hasattr(block, "attentions") == attend
            for attention in getattr(block, "attentions", []):
                assert len(attention.transformer_blocks) == 1
                cross = attention.transformer_blocks[0].attn2
                assert cross.heads == width // 32
                assert cross.to_k.weight.shape == (width, 512)
    assert network.unet.mid_block.attentions[0].transformer_blocks[0].attn2.heads == widths[-1] // 32


def test_the_class_reaches_the_unet(awake: Callable[[nn.Module], nn.Module]) -> None:
    prior = awake(prior_of("ldm"))
    latent, time = torch.randn(1, 4, 4, 4, dtype=torch.float64), torch.tensor([500])
    a, b = (prior.network(latent, time, torch.tensor([label])) for label in (0, 1))
    assert not torch.allclose(a, b)


def test_checkpointing_of_the_unet_gives_the_same_gradients() -> None:
    prior = prior_of("ldm")
    latents, labels = torch.randn(2, 4, 4, 4), torch.tensor([0, 1])

    def gradients() -> list[torch.Tensor]:
        loss = prior(latents, labels, torch.Generator().manual_seed(0))["loss"]
        return list(torch.autograd.grad(loss, list(prior.parameters())))

    plain = gradients()
    prior.network.gradient_checkpointing = True
    assert prior.network.gradient_checkpointing
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b)


# errors


def test_errors_name_the_argument() -> None:
    prior, flow = prior_of("dit"), prior_of("sit")
    labels, random = torch.tensor([0]), SampleRandom(0, [0])
    with pytest.raises(ValueError, match=r"^method: expected 'ancestral' or 'ddim' for DDPM, got 'euler'$"):
        sample_latents(prior, DiffusionSamplingConfig(method="euler"), random, labels)
    with pytest.raises(ValueError, match=r"^method: expected 'euler', 'heun' or 'sde' for a flow, got 'ddim'$"):
        sample_latents(flow, DiffusionSamplingConfig(method="ddim"), random, labels)
    with pytest.raises(ValueError, match=r"^steps: expected at most the 1000 of the process, got 1001$"):
        sample_latents(prior, DiffusionSamplingConfig(method="ddim", steps=1001), random, labels)
    with pytest.raises(ValueError, match=r"^cfg_channels: expected at most 4, got 5$"):
        sample_latents(prior, DiffusionSamplingConfig(method="ddim", cfg_channels=5), random, labels)
    with pytest.raises(ValueError, match=r"^labels: expected classes from 0 to 2, or 3 for none, got 4$"):
        sample_latents(prior, DiffusionSamplingConfig(method="ddim"), random, torch.tensor([4]))
    with pytest.raises(ValueError, match=r"^denoise: expected an output \(1, 6, 2\), got \(1, 3, 2\)$"):
        DDPM(DDPMConfig()).terms(lambda x, time: x, torch.zeros(1, 3, 2))
    with pytest.raises(ValueError, match=r"^denoise: expected an output \(1, 3, 2\), got \(1, 6, 2\)$"):
        Flow(FlowConfig()).terms(lambda x, time: x.repeat(1, 2, 1), torch.zeros(1, 3, 2))
    with pytest.raises(ValueError, match=r"^process.learned_variance: expected False for a network without"):
        DiffusionConfig(network=UNetConfig(), process=DDPMConfig())
    with pytest.raises(ValueError, match=r"^network.learned_sigma: expected False for a process without"):
        DiffusionConfig(network=TINY, process=LDM)
    with pytest.raises(ValueError, match=r"^grid: expected sides that 2 divides, got \(3, 4\)$"):
        LDMUNet(UNetConfig(), channels=4, grid=(3, 4), num_classes=0)
    with pytest.raises(ValueError, match=r"^attention_levels: expected levels below 2, got \(2,\)$"):
        UNetConfig(attention_levels=(2,))
    with pytest.raises(ValueError, match=r"^base_channels: expected a multiple of 24, got 32$"):
        UNetConfig(base_channels=32, norm_groups=24)
    with pytest.raises(ValueError, match=r"^norm_groups: expected at least 1, got 0$"):
        UNetConfig(norm_groups=0)
    with pytest.raises(ValueError, match=r"^beta_first: expected 0 < first <= last < 1, got 0.1, 0.02$"):
        DDPMConfig(beta_first=0.1)
    for arguments, message in [
        ({"method": "sde", "steps": 1}, r"^steps: expected at least 2, got 1$"),
        ({"method": "ddim", "eta": 2.0}, r"^eta: expected 0 to 1, got 2.0$"),
        ({"method": "ddim", "cfg_channels": 0}, r"^cfg_channels: expected at least 1, got 0$"),
        ({"method": "sde", "temperature": -1.0}, r"^temperature: expected at least 0, got -1.0$"),
    ]:
        with pytest.raises(ValueError, match=message):
            DiffusionSamplingConfig(**arguments)  # type: ignore[arg-type]
