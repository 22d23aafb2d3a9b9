"""DDPM and flows: the process against Bayes, losses against closed forms, samplers against exact Gaussians."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from needs import import_library
from torch.distributions import Normal, kl_divergence

from models.networks.dit import DiTConfig
from models.priors.diffusion import (
    DDPM,
    DDPMConfig,
    Flow,
    FlowConfig,
    discretized_log_likelihood,
    gaussian_kl,
)
from models.priors.diffusion_sampling import DiffusionSamplingConfig, denoised, kept_steps
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


@pytest.mark.parametrize("method", ["euler", "heun", "sde"])
def test_a_predicted_image_leads_where_its_velocity_does(method: str) -> None:
    """The velocity is the rest of the way over the rest of the time; one step goes all of it."""

    def exact_data(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return x + (1 - time.view(-1, 1)) * exact_velocity(x, time)

    start = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    data = Flow(FlowConfig(predicts="data"))

    def ends(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        config = DiffusionSamplingConfig(method=method, steps=steps)  # type: ignore[arg-type]
        ways = ((exact_velocity, Flow(FlowConfig())), (exact_data, data))
        first, second = (denoised(way, flow, start, config, SampleRandom(0, range(5))) for way, flow in ways)
        return first, second

    if method == "heun":  # its last step is another one
        apart = [(first - second).abs().max().item() for first, second in map(ends, (50, 200))]
        assert 0 < apart[1] < 0.1 * apart[0]
        return
    torch.testing.assert_close(*ends(16))
    if method == "euler":  # noise alone says nothing of the data but their mean
        torch.testing.assert_close(ends(1)[1], torch.full_like(start, MEAN))


def test_training_times_of_a_flow() -> None:
    """Uniform: quartiles at quarters. Logistic of normal numbers around -1: half below 0.27, P(z < 1) below 1/2."""
    clean, bounds = torch.zeros(100_000, 1), (1 / (1 + math.e), 0.5)
    for config, shares in ((FlowConfig(), bounds), (FlowConfig(logit_mean=-1.0), (0.5, 0.8413))):
        times: list[torch.Tensor] = []

        def denoise(x: torch.Tensor, time: torch.Tensor, seen: list[torch.Tensor] = times) -> torch.Tensor:
            seen.append(time)
            return x

        Flow(config).terms(denoise, clean, torch.Generator().manual_seed(0))
        for bound, share in zip(bounds, shares, strict=True):
            # five standard errors at most
            assert (times[0] < bound).double().mean().item() == pytest.approx(share, abs=5 * 0.5 / len(clean) ** 0.5)


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


@pytest.mark.parametrize("kind", ["flow", "data", "ddpm", "learned"])
def test_the_gaussian_baseline_errs_as_much_as_it_must(kind: str) -> None:
    """Of a normal channel of deviation s: s pi / 2 for velocities, the mean of ks^2 / (ks^2 + 1 - k) for noise.

    For data the mean of the variance that is left.
    """
    generator = torch.Generator().manual_seed(0)
    mean, deviation = torch.tensor([3.0, -1.0]), torch.tensor([0.5, 2.0])
    clean = mean + deviation * torch.randn(200_000, 2, generator=generator)
    if kind == "flow":
        process, expected = Flow(FlowConfig()), deviation * math.pi / 2
    elif kind == "data":
        process, time = Flow(FlowConfig(predicts="data")), torch.linspace(0, 1, 10_001)[:, None]
        # Bayes: the inverse variances of data and of what was seen of them add up
        expected = ((1 - time).square() / ((1 - time).square() / deviation.square() + time.square())).mean(0)
    else:
        process = DDPM(DDPMConfig(learned_variance=kind == "learned"))
        signal = process.kept[:, None] * deviation.square()  # [N, C]
        expected = (signal / (signal + 1 - process.kept[:, None])).mean(0)
    terms = process.terms(process.gaussian(mean, deviation.square()), clean, generator)
    error = terms.get("mse", terms["loss"])
    # five standard errors of the mean
    assert float(error.mean()) == pytest.approx(
        float(expected.mean()), abs=5 * float(error.std()) / len(error) ** 0.5
    )
