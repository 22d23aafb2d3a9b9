"""Diffusion priors of latents: DDPM (noise prediction, learned variance) and flow matching (velocity).

A process adds noise to clean data and says what the loss of a network's output is; any network will do, so that
decoders of tokenizers train on the same two. Time of DDPM counts steps from 0, the cleanest; time of a flow runs from
0, noise, to 1, data. B batch, C channels, ... the other dimensions of a sample, N steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from models.config_json import Hidden
from models.networks.dit import DiT, DiTConfig, SiT
from models.networks.ldm_unet import LDMUNet, UNetConfig
from models.priors.corruption import check_share, drop_labels

Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # noised [B, C, ...] and time [B] to the output


@dataclass(frozen=True, kw_only=True)
class DDPMConfig:
    """Steps of added noise, and what the network says about them."""

    kind: Hidden[Literal["ddpm"]] = "ddpm"
    steps: int = 1000  # of the whole process
    betas: Literal["linear", "sqrt_linear"] = "linear"  # linear betas (DiT), or linear in their square roots (LDM)
    beta_first: float = 1e-4  # variance added by the first step (LDM 0.0015)
    beta_last: float = 0.02  # variance added by the last step (LDM 0.0195)
    learned_variance: bool = True  # a second half of the output places each variance in its range (DiT)

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"steps: expected at least 2, got {self.steps}")
        if not 0 < self.beta_first <= self.beta_last < 1:
            raise ValueError(f"beta_first: expected 0 < first <= last < 1, got {self.beta_first}, {self.beta_last}")


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Straight lines from noise to data; the network gives the velocity, or the data that it follows from."""

    kind: Hidden[Literal["flow"]] = "flow"
    predicts: Literal["velocity", "data"] = "velocity"  # what the output is, and what the loss is an error of
    logit_mean: float | None = None  # training times: logistic of normal numbers around it; None: uniform


class DDPM:
    """Gaussian diffusion. Tables of all steps are float64 and move to where they are used."""

    def __init__(self, config: DDPMConfig) -> None:
        self.config = config
        first, last = config.beta_first, config.beta_last
        if config.betas == "linear":
            betas = torch.linspace(first, last, config.steps, dtype=torch.float64)
        else:
            betas = torch.linspace(math.sqrt(first), math.sqrt(last), config.steps, dtype=torch.float64).square()
        self.kept = (1 - betas).cumprod(0)  # [N], share of the signal's variance that is left after each step

    def noised(
        self,
        clean: torch.Tensor,  # [B, C, ...]
        time: torch.Tensor,  # [B]
        noise: torch.Tensor,  # [B, C, ...]
    ) -> torch.Tensor:  # [B, C, ...]
        kept = self._at(time, clean)
        return kept.sqrt().to(clean.dtype) * clean + (1 - kept).sqrt().to(clean.dtype) * noise

    def clean(self, noised: torch.Tensor, time: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:  # [B, C, ...]
        """Inverse of :meth:`noised`."""
        kept = self._at(time, noised)
        return (noised - (1 - kept).sqrt().to(noised.dtype) * noise) / kept.sqrt().to(noised.dtype)

    def posterior(
        self,
        clean: torch.Tensor,  # [B, C, ...]
        noised: torch.Tensor,  # [B, C, ...]
        time: torch.Tensor,  # [B]
        previous: torch.Tensor,  # [B], an earlier step; -1 is clean data
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean of q(x_previous | x_time, clean), and logarithms of its variance and of that of the step itself.

        They are the lower and the upper end of the range of a learned variance. The last step to clean data has no
        variance; there the lower end is that of the first two steps, as published.
        """
        kept, before = self._at(time, clean), self._at(previous, clean)
        step = 1 - kept / before  # beta of the step
        of_clean = before.sqrt() * step / (1 - kept)
        of_noised = (kept / before).sqrt() * (1 - before) / (1 - kept)
        mean = of_clean.to(clean.dtype) * clean + of_noised.to(clean.dtype) * noised
        first, second = self.kept[:2].tolist()
        least = (1 - first) / (1 - second) * (1 - second / first)
        variance = torch.where(before < 1, (1 - before) / (1 - kept) * step, least)
        return mean, variance.log().to(clean.dtype), step.log().to(clean.dtype)

    def _at(self, time: torch.Tensor, like: torch.Tensor) -> torch.Tensor:  # [B] -> [B, 1, ...] float64
        """Share of the signal's variance left at ``time``; all of it at -1."""
        kept = self.kept.to(time.device)[time.clamp(min=0)]
        return _broadcast(torch.where(time < 0, 1.0, kept), like)

    def terms(
        self, denoise: Denoise, clean: torch.Tensor, generator: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """Losses per sample [B] at random times: ``loss``, ``mse`` of the noise, ``vlb`` of a learned variance."""
        time = torch.randint(self.config.steps, (len(clean),), device=clean.device, generator=generator)
        noise = normal_like(clean, generator)
        noised = self.noised(clean, time, noise)
        output = denoise(noised, time)
        self.check_output(output, clean)
        channels = clean.shape[1]
        predicted = output[:, :channels]
        mse = (predicted - noise).square().flatten(1).mean(1)
        if not self.config.learned_variance:
            return {"loss": mse, "mse": mse}
        # the bound trains the variance alone
        vlb = self.variational_bound(clean, noised, time, predicted.detach(), output[:, channels:])
        return {"loss": mse + vlb, "mse": mse, "vlb": vlb}

    def variational_bound(
        self,
        clean: torch.Tensor,  # [B, C, ...]
        noised: torch.Tensor,  # [B, C, ...]
        time: torch.Tensor,  # [B]
        noise: torch.Tensor,  # [B, C, ...], predicted
        place: torch.Tensor,  # [B, C, ...], of the log variance in its range: -1 lower end, 1 upper
    ) -> torch.Tensor:  # [B]
        """Bits per dimension of the term of the bound at ``time``: KL to the posterior; at 0 the data's likelihood.

        The likelihood is that of 8-bit images in [-1, 1], for latents too, as published.
        """
        true_mean, low, high = self.posterior(clean, noised, time, time - 1)
        mean, _, _ = self.posterior(self.clean(noised, time, noise), noised, time, time - 1)
        log_variance = between(low, high, place)
        kl = gaussian_kl(true_mean, low, mean, log_variance)
        nll = -discretized_log_likelihood(clean, mean, log_variance / 2)
        bits = torch.where(_broadcast(time, clean) == 0, nll, kl) / math.log(2)
        return bits.flatten(1).mean(1)

    def gaussian(self, mean: torch.Tensor, variance: torch.Tensor) -> Denoise:  # [C], [C]
        """The best prediction of the noise in data of independent normal channels."""

        def denoise(noised: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            kept = self._at(time, noised).to(noised.dtype)
            expected, spread = (_channels(values, noised) for values in (mean, variance))
            noise = (1 - kept).sqrt() / (kept * spread + 1 - kept) * (noised - kept.sqrt() * expected)
            return torch.cat([noise, torch.zeros_like(noise)], dim=1) if self.config.learned_variance else noise

        return denoise

    def check_output(self, output: torch.Tensor, clean: torch.Tensor) -> None:
        """Raise unless a network's output has the channels this process needs."""
        channels = clean.shape[1] * (2 if self.config.learned_variance else 1)
        expected = (clean.shape[0], channels, *clean.shape[2:])
        if output.shape != expected:
            raise ValueError(f"denoise: expected an output {expected}, got {tuple(output.shape)}")


class Flow:
    """Flow matching on straight lines: x = t data + (1 - t) noise, velocity data - noise."""

    def __init__(self, config: FlowConfig) -> None:
        self.config = config

    def terms(
        self, denoise: Denoise, clean: torch.Tensor, generator: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """``loss`` per sample [B], squared error of the output at a random time."""
        time = self._times(clean, generator)
        noise = normal_like(clean, generator)
        where = _broadcast(time.to(clean.dtype), clean)
        output = denoise(where * clean + (1 - where) * noise, time)
        if output.shape != clean.shape:
            raise ValueError(f"denoise: expected an output {tuple(clean.shape)}, got {tuple(output.shape)}")
        target = clean if self.config.predicts == "data" else clean - noise
        return {"loss": (output - target).square().flatten(1).mean(1)}

    def _times(self, clean: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:  # [B]
        mean = self.config.logit_mean
        if mean is None:
            return torch.rand(len(clean), device=clean.device, generator=generator)
        return torch.sigmoid(torch.randn(len(clean), device=clean.device, generator=generator) + mean)

    def velocity(self, output: torch.Tensor, x: torch.Tensor, time: float) -> torch.Tensor:  # [B, C, ...]
        """That of samples ``x`` by a network's output there; with predicted data before ``time`` is 1."""
        return output if self.config.predicts == "velocity" else (output - x) / (1 - time)

    def gaussian(self, mean: torch.Tensor, variance: torch.Tensor) -> Denoise:  # [C], [C]
        """The best output for data of independent normal channels; velocities err by pi / 2 times their deviation."""
        data = self.config.predicts == "data"

        def denoise(noised: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            where = _broadcast(time, noised)
            expected, spread = (_channels(values, noised) for values in (mean, variance))
            signal = where * spread
            gain = (signal if data else signal - (1 - where)) / (where.square() * spread + (1 - where).square())
            return expected + gain * (noised - where * expected)

        return denoise


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """A network and the process it undoes: LDM, DiT (ddpm) and SiT (flow)."""

    kind: Hidden[Literal["diffusion"]] = "diffusion"
    network: DiTConfig | UNetConfig  # transformer or UNet
    process: DDPMConfig | FlowConfig  # what is added to the latents
    class_dropout: float = 0.1  # classes hidden, for guidance

    def __post_init__(self) -> None:
        check_share("class_dropout", self.class_dropout)
        learned = isinstance(self.process, DDPMConfig) and self.process.learned_variance
        if learned and not (isinstance(self.network, DiTConfig) and self.network.learned_sigma):
            raise ValueError("process.learned_variance: expected False for a network without that output, got True")
        plain = isinstance(self.process, DDPMConfig) and not self.process.learned_variance
        if plain and isinstance(self.network, DiTConfig) and self.network.learned_sigma:
            raise ValueError("network.learned_sigma: expected False for a process without that output, got True")


class DiffusionPrior(nn.Module):
    """The forward pass is the training loss. Latents are what the encoder gives, before quantization."""

    def __init__(
        self, config: DiffusionConfig, *, channels: int, grid: tuple[int, int], num_classes: int = 0
    ) -> None:
        super().__init__()
        self.config, self.channels, self.grid, self.num_classes = config, channels, grid, num_classes
        self.process = DDPM(config.process) if isinstance(config.process, DDPMConfig) else Flow(config.process)
        self.network: DiT | LDMUNet
        if isinstance(config.network, UNetConfig):
            self.network = LDMUNet(config.network, channels=channels, grid=grid, num_classes=num_classes)
        else:
            network = SiT if isinstance(config.process, FlowConfig) else DiT
            self.network = network(config.network, channels=channels, grid=grid, num_classes=num_classes)

    def forward(
        self,
        latents: torch.Tensor,  # [B, C, h, w]
        labels: torch.Tensor | None = None,  # [B]
        generator: torch.Generator | None = None,
    ) -> dict[str, torch.Tensor]:
        """``loss`` to train on and its parts, means over the batch."""
        if self.training:
            labels = drop_labels(labels, self.config.class_dropout, self.num_classes, generator)
        terms = self.process.terms(lambda x, time: self.network(x, time, labels), latents, generator)
        return {name: term.mean() if name == "loss" else term.detach().mean() for name, term in terms.items()}

    def targets(self, latents: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, C, h, w]
        """What the process makes noise of."""
        return latents


def normal_like(x: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)


def between(low: torch.Tensor, high: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """From ``low`` at -1 to ``high`` at 1; outside of -1 and 1 the line goes on."""
    share = (place + 1) / 2
    return share * high + (1 - share) * low


def gaussian_kl(
    mean1: torch.Tensor, log_variance1: torch.Tensor, mean2: torch.Tensor, log_variance2: torch.Tensor
) -> torch.Tensor:
    """KL divergence of the first normal distribution from the second, in nats, element by element."""
    difference = log_variance2 - log_variance1
    return 0.5 * (difference - 1 + (-difference).exp() + (mean1 - mean2).square() * (-log_variance2).exp())


def discretized_log_likelihood(data: torch.Tensor, mean: torch.Tensor, log_deviation: torch.Tensor) -> torch.Tensor:
    """Log probability of the 1/127.5-wide bin around each value; the bins at -1 and 1 reach to infinity."""
    scale = (-log_deviation).exp()
    upper, lower = (scale * (data - mean + 1 / 255), scale * (data - mean - 1 / 255))
    below, above = torch.special.log_ndtr(upper), torch.special.log_ndtr(-lower)
    inside = (torch.special.ndtr(upper) - torch.special.ndtr(lower)).clamp(min=1e-12).log()
    return torch.where(data < -0.999, below, torch.where(data > 0.999, above, inside))


def _channels(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:  # [C] -> [1, C, 1, ...]
    return values.view(1, -1, *[1] * (like.ndim - 2))


def _broadcast(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:  # [B] -> [B, 1, ...]
    return values.view(-1, *[1] * (like.ndim - 1))
