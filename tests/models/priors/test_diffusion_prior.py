"""Diffusion priors: the process against Bayes, losses against closed forms, samplers against exact Gaussians."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from needs import import_library
from torch import nn
from torch.distributions import Normal, kl_divergence

from models.networks.dit import DiTConfig
from models.networks.ldm_unet import LDMUNet, UNetConfig, ldm_f8, ldm_f16
from models.priors.diffusion import (
    DDPM,
    DDPMConfig,
    DiffusionConfig,
    DiffusionPrior,
    Flow,
    FlowConfig,
    discretized_log_likelihood,
    gaussian_kl,
)
from models.priors.diffusion_sampling import DiffusionSamplingConfig, denoised, kept_steps, sample_latents
from models.priors.sample_random import SampleRandom

TINY = DiTConfig(layers=2, width=16, heads=2)
LDM = DDPMConfig(betas="sqrt_linear", beta_first=0.0015, beta_last=0.0195, learned_variance=False)
MEAN, SPREAD = 1.5, 0.6  # of the toy data, one number a sample


# the process


def test_steps_are_those_of_diffusers() -> None:
    schedulers = import_library("diffusers")
    for config, name in ((DDPMConfig(), "linear"), (LDM, "scaled_linear")):
        theirs = schedulers.DDPMScheduler(
            beta_schedule=name, beta_start=config.beta_first, beta_end=config.beta_last
        ).alphas_cumprod
        torch.testing.assert_close(DDPM(config).kept.float(), theirs, rtol=1e-5, atol=0)


def test_clean_inverts_noised() -> None:
    process = DDPM(DDPMConfig())
    clean, noise, time = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 500, 999])
    noised = process.noised(clean, time, noise)
    torch.testing.assert_close(process.clean(noised, time, noise), clean, rtol=0, atol=1e-4)
    assert (noised[3] - noise[3]).abs().max() < 0.05 * noise[3].abs().max() + 0.05


@pytest.mark.parametrize(("time", "previous"), [(1, 0), (500, 499), (999, 998), (999, 500), (40, 0)])
def test_the_posterior_is_bayes(time: int, previous: int) -> None:
    """x_previous is normal given clean data, x_time is normal given x_previous: their product, by precisions."""
    process = DDPM(DDPMConfig())
    clean, noised = torch.randn(2, 5, dtype=torch.float64)
    before, kept = process.kept[previous], process.kept[time]
    along = kept / before
    precision = 1 / (1 - before) + along / (1 - along)
    mean = (before.sqrt() * clean / (1 - before) + along.sqrt() * noised / (1 - along)) / precision
    steps = torch.full((5,), time), torch.full((5,), previous)
    found, low, high = process.posterior(clean, noised, *steps)
    torch.testing.assert_close(found, mean)
    torch.testing.assert_close(low, (1 / precision).log().expand(5))
    torch.testing.assert_close(high, (1 - along).log().expand(5))


def test_the_step_to_clean_data_is_clean_data() -> None:
    process = DDPM(DDPMConfig())
    clean, noised = torch.randn(2, 5, dtype=torch.float64)
    mean, low, _ = process.posterior(clean, noised, torch.full((5,), 0), torch.full((5,), -1))
    torch.testing.assert_close(mean, clean)
    _, second, _ = process.posterior(clean, noised, torch.full((5,), 1), torch.full((5,), 0))
    torch.testing.assert_close(low, second)


# losses


def test_kl_is_that_of_torch() -> None:
    mean1, log1, mean2, log2 = torch.randn(4, 20, dtype=torch.float64)
    theirs = kl_divergence(Normal(mean1, (log1 / 2).exp()), Normal(mean2, (log2 / 2).exp()))
    torch.testing.assert_close(gaussian_kl(mean1, log1, mean2, log2), theirs)


def test_the_likelihoods_of_all_bins_sum_to_one() -> None:
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean, deviation in ((0.1, 0.05), (-0.98, 0.3), (1.2, 0.01)):
        means, deviations = torch.full_like(values, mean), torch.full_like(values, deviation)
        likelihood = discretized_log_likelihood(values, means, deviations.log()).exp()
        # a bin counts 1e-12 at least
        assert abs(likelihood.sum() - 1) < 1e-9
        normal = Normal(means[100], deviations[100])
        expected = normal.cdf(values[100] + 1 / 255) - normal.cdf(values[100] - 1 / 255)
        assert abs(likelihood[100] - expected) < 1e-9


def test_the_bound_is_the_closed_form() -> None:
    process = DDPM(DDPMConfig())
    clean, noise, guess = torch.randn(3, 4, 2, 3, dtype=torch.float64)
    time, place = torch.tensor([0, 1, 500, 999]), torch.rand(4, 2, 3, dtype=torch.float64) * 2 - 1
    noised = process.noised(clean, time, noise)
    found = process.variational_bound(clean, noised, time, guess, place)
    for index, step in enumerate(time.tolist()):
        kept = process.kept[step]
        before = process.kept[step - 1] if step else torch.ones((), dtype=torch.float64)
        beta = 1 - kept / before
        # the published forms of the two means, in the noise
        means = [
            (noised[index] - beta / (1 - kept).sqrt() * e) / (1 - beta).sqrt() for e in (noise[index], guess[index])
        ]
        first, second = process.kept[:2]
        low = (1 - before) / (1 - kept) * beta if step else (1 - first) / (1 - second) * (1 - second / first)
        share = (place[index] + 1) / 2
        deviation = (share * beta.log() + (1 - share) * low.log()).exp().sqrt()
        if step:
            nats = kl_divergence(Normal(means[0], low.sqrt()), Normal(means[1], deviation))
        else:
            nats = -discretized_log_likelihood(clean[index], means[1], deviation.log())
        torch.testing.assert_close(found[index], nats.mean() / math.log(2), rtol=1e-9, atol=1e-9)
    perfect = process.variational_bound(clean, noised, time, noise, torch.full_like(place, -1))
    assert perfect[1:].abs().max() < 1e-9


def test_the_bound_trains_the_variance_alone() -> None:
    output = torch.randn(8, 6, 2, 2, requires_grad=True)
    terms = DDPM(DDPMConfig()).terms(lambda x, time: output, torch.randn(8, 3, 2, 2))
    (gradient,) = torch.autograd.grad(terms["vlb"].sum(), output, retain_graph=True)
    assert not gradient[:, :3].any()
    assert gradient[:, 3:].any()
    (gradient,) = torch.autograd.grad(terms["mse"].sum(), output)
    assert gradient[:, :3].any()
    assert not gradient[:, 3:].any()
    torch.testing.assert_close(terms["loss"], terms["mse"] + terms["vlb"])


def test_what_is_denoised_is_what_the_loss_is_about() -> None:
    """A network that knows the data has no loss."""
    clean = torch.randn(6, 3, 2, 2, dtype=torch.float64)
    process = DDPM(dataclasses.replace(LDM))

    def noise_of(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        kept = process.kept[time].view(-1, 1, 1, 1)
        return (x - kept.sqrt() * clean) / (1 - kept).sqrt()

    assert process.terms(noise_of, clean)["loss"].max() < 1e-9

    def velocity_of(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return (clean - x) / (1 - time.view(-1, 1, 1, 1))

    assert Flow(FlowConfig()).terms(velocity_of, clean)["loss"].max() < 1e-9


# samplers on data whose networks are known: normal, mean MEAN, deviation SPREAD


class Impulses:
    """Random numbers of which sample k has 1 at the k-th number it draws and 0 elsewhere; the last has none.

    A sampler of normal data is linear in its numbers, so that the results are the weights of the numbers: the last
    sample is the mean, and the others' squared distances from it sum to the variance.
    """

    def __init__(self, draws: int) -> None:
        self.draws, self.drawn = draws, 0

    def __len__(self) -> int:
        return self.draws + 1

    def normal(self, *shape: int) -> torch.Tensor:
        numbers = torch.zeros(len(self), *shape)
        numbers[self.drawn] = 1
        self.drawn += 1
        return numbers


def moments(
    process: DDPM | Flow, denoise: Callable[..., torch.Tensor], config: DiffusionSamplingConfig
) -> tuple[float, float]:
    """Mean and variance of what the sampler makes of noise."""
    random = Impulses(config.steps + 1)
    start = random.normal(1).double()
    results = denoised(denoise, process, start, config, random)[:, 0]  # type: ignore[arg-type]
    return results[-1].item(), (results[:-1] - results[-1]).square().sum().item()


def exact_noise(process: DDPM, visited: list[int] | None = None) -> Callable[..., torch.Tensor]:
    """The best prediction of the noise; with the steps visited, also the place of the exact variance of each."""

    def denoise(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        kept = process.kept[time[0]]
        total = kept * SPREAD**2 + 1 - kept
        noise = (1 - kept).sqrt() * (x - kept.sqrt() * MEAN) / total
        if visited is None:
            return noise
        step = visited.index(int(time[0]))
        previous = torch.full_like(time, visited[step + 1] if step + 1 < len(visited) else -1)
        # the step back is a normal again: variance of the posterior's mean over clean data, plus the posterior's
        zeros, ones = torch.zeros_like(x), torch.ones_like(x)
        weight = process.posterior(ones, zeros, time, previous)[0]
        _, low, high = process.posterior(zeros, zeros, time, previous)
        exact = low.exp() + weight**2 * SPREAD**2 * (1 - kept) / total
        return torch.cat([noise, 2 * (exact.log() - low) / (high - low) - 1], dim=1)

    return denoise


@pytest.mark.parametrize("steps", [20, 250, 1000])
def test_ancestral_steps_with_exact_variances_recover_the_data(steps: int) -> None:
    """Any number of them; what is missing is the noise of the first step (1e-4) and the signal in the last (4e-5)."""
    process = DDPM(DDPMConfig())
    config = DiffusionSamplingConfig(method="ancestral", steps=steps)
    denoise = exact_noise(process, kept_steps(1000, steps, "ancestral"))
    mean, variance = moments(process, denoise, config)
    start = process.kept[-1].sqrt().item()  # the mean that sampling takes for zero
    assert abs(mean - MEAN) < start * MEAN
    assert abs(variance - SPREAD**2) < 2e-4 + start


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_approaches_the_data(eta: float) -> None:
    process = DDPM(LDM)
    errors = []
    for steps in (25, 100, 1000):
        config = DiffusionSamplingConfig(method="ddim", steps=steps, eta=eta)
        mean, variance = moments(process, exact_noise(process), config)
        errors.append((abs(mean - MEAN), abs(variance - SPREAD**2)))
    assert errors[0][1] > errors[1][1] > errors[2][1]
    # sampling takes zero for the mean it should start from
    assert errors[2][0] < process.kept[-1].sqrt() * MEAN
    assert errors[2][1] < 0.01


def test_one_ddim_step_in_closed_form() -> None:
    """eta = 0: sqrt(kept') x0 + sqrt(1 - kept') noise, down to clean data."""
    process = DDPM(LDM)
    config = DiffusionSamplingConfig(method="ddim", steps=2)
    x, noise = torch.randn(2, 4, 1, dtype=torch.float64)
    found = denoised(lambda x, time: noise, process, x, config, SampleRandom(0, range(4)))
    first, second = process.kept[501], process.kept[1]
    clean = (x - (1 - first).sqrt() * noise) / first.sqrt()
    between = second.sqrt() * clean + (1 - second).sqrt() * noise
    torch.testing.assert_close(found, (between - (1 - second).sqrt() * noise) / second.sqrt())


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [10, 200])
def test_ddim_is_that_of_diffusers(eta: float, steps: int) -> None:
    theirs = import_library("diffusers").DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195, clip_sample=False, steps_offset=1
    )
    theirs.set_timesteps(steps)
    assert theirs.timesteps.tolist() == kept_steps(1000, steps, "ddim")
    x = start = torch.randn(3, 2, 4, 4)

    def denoise(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * (0.5 + time.view(-1, 1, 1, 1) / 2000)

    random = SampleRandom(0, range(3))
    for number, step in enumerate(theirs.timesteps):
        last = number == steps - 1
        noise = random.normal(2, 4, 4) if eta and not last else torch.zeros_like(x)
        x = theirs.step(denoise(x, step.expand(3)), step, x, eta=eta, variance_noise=noise).prev_sample
    config = DiffusionSamplingConfig(method="ddim", steps=steps, eta=eta)
    found = denoised(denoise, DDPM(LDM), start, config, SampleRandom(0, range(3)))
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)


def exact_velocity(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    t = time.view(-1, 1)
    variance = t**2 * SPREAD**2 + (1 - t) ** 2
    return MEAN + (t * SPREAD**2 - (1 - t)) / variance * (x - t * MEAN)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_flows_converge_with_their_order(method: str, order: int) -> None:
    """The exact flow takes x to MEAN + SPREAD x; halving the steps divides the error by 2^order."""
    start = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    errors = []
    for steps in (50, 100, 200):
        config = DiffusionSamplingConfig(method=method, steps=steps)  # type: ignore[arg-type]
        found = denoised(exact_velocity, Flow(FlowConfig()), start, config, SampleRandom(0, range(5)))
        errors.append((found - (MEAN + SPREAD * start)).abs().max().item())
    rates = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(abs(rate - order) < 0.1 for rate in rates), (errors, rates)


def test_the_stochastic_flow_approaches_the_data() -> None:
    errors = []
    for steps in (50, 250, 1000):
        config = DiffusionSamplingConfig(method="sde", steps=steps)
        mean, variance = moments(Flow(FlowConfig()), exact_velocity, config)
        errors.append((abs(mean - MEAN), abs(variance - SPREAD**2)))
    # the last 0.04 is one step along the mean, whatever the number of steps
    assert errors[0][1] > errors[1][1] > errors[2][1]
    assert errors[2][0] < 0.01
    assert errors[2][1] < 0.04


def test_no_noise_makes_the_stochastic_flow_colder() -> None:
    config = DiffusionSamplingConfig(method="sde", steps=100, temperature=0.5)
    _, cold = moments(Flow(FlowConfig()), exact_velocity, config)
    _, warm = moments(Flow(FlowConfig()), exact_velocity, dataclasses.replace(config, temperature=1.0))
    assert cold < warm


def test_visited_steps() -> None:
    assert kept_steps(1000, 1000, "ancestral") == list(range(1000))[::-1] == kept_steps(1000, 1000, "ddim")
    assert kept_steps(1000, 250, "ancestral")[:2] == [999, 995]
    assert kept_steps(1000, 250, "ancestral")[-2:] == [4, 0]
    assert kept_steps(1000, 200, "ddim")[:2] == [996, 991]
    assert kept_steps(1000, 200, "ddim")[-2:] == [6, 1]
    assert kept_steps(1000, 1, "ancestral") == [999]


# the priors


def prior_of(kind: str, num_classes: int = 3) -> DiffusionPrior:
    torch.manual_seed(0)
    if kind == "dit":
        config = DiffusionConfig(network=TINY, process=DDPMConfig())
    elif kind == "sit":
        config = DiffusionConfig(network=TINY, process=FlowConfig())
    else:
        import_library("diffusers")
        network = UNetConfig(base_channels=32, multipliers=(1, 2), res_blocks=1, context_dim=16)
        config = DiffusionConfig(network=network, process=LDM)
    return DiffusionPrior(config, channels=4, grid=(4, 4), num_classes=num_classes)


METHODS = {"dit": "ancestral", "sit": "heun", "ldm": "ddim"}


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
