"""Sampling of diffusion priors: ancestral and DDIM steps of DDPM, Euler, Heun and stochastic steps of flows.

B samples, N rows of the network (2B with guidance: those with the class, then those without), C channels, ... the
other dimensions of a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from models.priors.diffusion import DDPM, Denoise, DiffusionPrior, Flow, between
from models.priors.guidance import Guidance, check_guidance
from models.priors.sample_random import SampleRandom
from models.priors.sampling import evaluating

Velocity = Callable[[torch.Tensor, float], torch.Tensor]  # samples [B, C, ...] at a time to [B, C, ...]
LAST_STEP = 0.04  # of stochastic flows: the last stretch, before the score divides by zero, is one step without noise


@dataclass(frozen=True, kw_only=True)
class DiffusionSamplingConfig:
    """The way from noise to latents. "ancestral" and "ddim" undo DDPM; "euler", "heun" and "sde" follow flows."""

    method: Literal["ancestral", "ddim", "euler", "heun", "sde"]
    steps: int = 250  # of the way; Heun evaluates the network twice in each
    guidance: float = 1.0  # u + s(c - u) on the output; 1 is the class alone
    cfg_channels: int | None = None  # guide this many first channels, none is all (DiT's and SiT's scripts: 3)
    eta: float = 0.0  # noise of DDIM: 0 none, 1 as much as ancestral steps (LDM 1.0)
    temperature: float = 1.0  # factor on the noise that "sde" adds

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.method == "sde" and self.steps < 2):
            raise ValueError(f"steps: expected at least {1 + (self.method == 'sde')}, got {self.steps}")
        check_guidance(self.guidance)
        if self.cfg_channels is not None and self.cfg_channels < 1:
            raise ValueError(f"cfg_channels: expected at least 1, got {self.cfg_channels}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta: expected 0 to 1, got {self.eta}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature: expected at least 0, got {self.temperature}")


def sample_latents(
    prior: DiffusionPrior,
    config: DiffusionSamplingConfig,
    random: SampleRandom,
    labels: torch.Tensor | None = None,  # [B]
) -> torch.Tensor:  # [B, C, h, w]
    """Latents of the samples that ``random`` names; quantizer and decoder make them images."""
    guidance = Guidance(config.guidance, labels, len(random), prior.num_classes)
    if config.cfg_channels is not None and config.cfg_channels > prior.channels:
        raise ValueError(f"cfg_channels: expected at most {prior.channels}, got {config.cfg_channels}")
    # the second half of an output is a variance, which is not guided
    channels = config.cfg_channels or prior.channels

    def denoise(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        output = prior.network(guidance.rows(x), guidance.rows(time), guidance.labels)
        return guidance(output, channels=channels)

    start = random.normal(prior.channels, *prior.grid).to(next(prior.parameters()).dtype)
    with evaluating(prior):
        return denoised(denoise, prior.process, start, config, random)


def denoised(
    denoise: Denoise,
    process: DDPM | Flow,
    start: torch.Tensor,  # [B, C, ...] noise
    config: DiffusionSamplingConfig,
    random: SampleRandom,
) -> torch.Tensor:  # [B, C, ...]
    """From noise to data by any network, guided or not; for the decoders of tokenizers too."""
    if isinstance(process, DDPM):
        if config.method not in ("ancestral", "ddim"):
            raise ValueError(f"method: expected 'ancestral' or 'ddim' for DDPM, got '{config.method}'")
        return _ddpm(denoise, process, start, config, random)
    if config.method not in ("euler", "heun", "sde"):
        raise ValueError(f"method: expected 'euler', 'heun' or 'sde' for a flow, got '{config.method}'")

    def velocity(x: torch.Tensor, time: float) -> torch.Tensor:  # [B, C, ...] -> [B, C, ...]
        # in float32 at least, as the embedding of the time is
        dtype = torch.promote_types(x.dtype, torch.float32)
        output = denoise(x, torch.full((len(x),), time, device=x.device, dtype=dtype)).to(x.dtype)
        return process.velocity(output, x, time)

    if config.method == "sde":
        return _stochastic_flow(velocity, start, config, random)
    return _flow(velocity, start, config, whole=process.config.predicts == "velocity")


def kept_steps(total: int, steps: int, method: Literal["ancestral", "ddim"]) -> list[int]:
    """The steps of a process that sampling visits, the noisiest first.

    "ancestral": evenly from first to last (DiT). "ddim": every ``total // steps``-th, from the second (LDM).
    """
    if steps > total:
        raise ValueError(f"steps: expected at most the {total} of the process, got {steps}")
    if method == "ddim":
        stride = total // steps
        shift = 1 if stride > 1 else 0
        return [index * stride + shift for index in range(steps)][::-1]
    if steps == 1:
        return [total - 1]
    return [round(index * (total - 1) / (steps - 1)) for index in range(steps)][::-1]


def _ddpm(
    denoise: Denoise, process: DDPM, x: torch.Tensor, config: DiffusionSamplingConfig, random: SampleRandom
) -> torch.Tensor:
    assert config.method == "ancestral" or config.method == "ddim"
    visited = kept_steps(process.config.steps, config.steps, config.method)
    channels = x.shape[1]
    for step, previous in zip(visited, [*visited[1:], -1], strict=True):
        time, before = (torch.full((len(x),), value, device=x.device) for value in (step, previous))
        output = denoise(x, time)
        process.check_output(output, x)
        noise = output[:, :channels].to(x.dtype)
        clean = process.clean(x, time, noise)
        if config.method == "ancestral":
            mean, low, high = process.posterior(clean, x, time, before)
            place = output[:, channels:].to(x.dtype) if process.config.learned_variance else torch.full_like(x, -1)
            deviation = (between(low, high, place) / 2).exp()
        else:
            mean, deviation = _ddim(process, clean, noise, step, previous, config.eta)
        x = mean
        # nothing is added on the way to clean data, and nothing is drawn where nothing is added
        if previous >= 0 and (config.method == "ancestral" or config.eta > 0):
            x = x + deviation * random.normal(*x.shape[1:]).to(x.dtype)
    return x


def _ddim(
    process: DDPM, clean: torch.Tensor, noise: torch.Tensor, step: int, previous: int, eta: float
) -> tuple[torch.Tensor, float]:
    """Mean of the earlier step, and how much noise to add to it."""
    kept = process.kept[step].item()
    before = process.kept[previous].item() if previous >= 0 else 1.0
    variance = eta**2 * (1 - before) / (1 - kept) * (1 - kept / before)
    return before**0.5 * clean + (1 - before - variance) ** 0.5 * noise, variance**0.5


def _flow(velocity: Velocity, x: torch.Tensor, config: DiffusionSamplingConfig, *, whole: bool) -> torch.Tensor:
    """Euler or Heun steps; not ``whole``, velocities are not known at the end, and the last step is Euler's."""
    step = 1 / config.steps
    for index in range(config.steps):
        speed = velocity(x, index * step)
        if config.method == "heun" and (whole or index + 1 < config.steps):
            speed = (speed + velocity(x + step * speed, (index + 1) * step)) / 2
        x = x + step * speed
    return x


def _stochastic_flow(
    velocity: Velocity, x: torch.Tensor, config: DiffusionSamplingConfig, random: SampleRandom
) -> torch.Tensor:
    """Euler-Maruyama steps with diffusion 1 - t, the last stretch as one step along the drift (SiT)."""
    step = (1 - LAST_STEP) / (config.steps - 1)
    for index in range(config.steps - 1):
        time = index * step
        noise = random.normal(*x.shape[1:]).to(x.dtype)
        spread = config.temperature * (2 * (1 - time) * step) ** 0.5
        x = x + step * _drift(velocity, x, time) + spread * noise
    return x + LAST_STEP * _drift(velocity, x, 1 - LAST_STEP)


def _drift(velocity: Velocity, x: torch.Tensor, time: float) -> torch.Tensor:
    """Velocity plus diffusion 1 - t times the score (t v - x) / (1 - t)."""
    speed = velocity(x, time)
    return speed + (time * speed - x)
