"""Sampling of masked priors in a few steps (MaskGIT): draw all hidden codes, keep the most confident, repeat.

B samples, N rows of the network (2B with guidance), L codes of a sample, K codes, R rows of logits at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from models.losses.cross_entropy import LOGITS_AT_ONCE
from models.priors.guidance import Guidance, check_guidance
from models.priors.masked import MaskedPrior
from models.priors.sample_random import SampleRandom
from models.priors.sampling import draw, evaluating


@dataclass(frozen=True, kw_only=True)
class MaskGITSamplingConfig:
    """Schedule and randomness of parallel decoding."""

    steps: int = 12  # forward passes
    schedule: Literal["cosine", "arccos"] = "cosine"  # share of codes still hidden after each step
    choice_temperature: float = 4.5  # Gumbel noise on which codes are kept, fading to none at the last step
    logit_temperature: float = 1.0  # divides the logits that codes are drawn from
    guidance: float = 1.0  # u + s(c - u) on the logits; 1 is the class alone
    guidance_growth: Literal["constant", "linear"] = "constant"  # "linear": from 1 at the first step to all of it

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, got {self.steps}")
        if not 0 <= self.choice_temperature < math.inf:
            raise ValueError(f"choice_temperature: expected at least 0, got {self.choice_temperature}")
        if not 0 < self.logit_temperature < math.inf:
            raise ValueError(f"logit_temperature: expected more than 0, got {self.logit_temperature}")
        check_guidance(self.guidance)


def hidden_counts(length: int, steps: int, schedule: Literal["cosine", "arccos"]) -> list[int]:
    """Codes still hidden after each step: at least one until the last step, and fewer each time while there are."""
    counts, hidden = [], length
    for step in range(1, steps):
        passed = step / steps
        share = math.cos(math.pi / 2 * passed) if schedule == "cosine" else math.acos(passed) / (math.pi / 2)
        hidden = max(min(math.floor(length * share), hidden - 1), 1)
        counts.append(hidden)
    return [*counts, 0]


def sample_masked(
    prior: MaskedPrior,
    config: MaskGITSamplingConfig,
    random: SampleRandom,
    labels: torch.Tensor | None = None,  # [B]
    *,
    known: torch.Tensor | None = None,  # [B, h, w], -1 where a code is to be drawn
) -> torch.Tensor:  # [B, h, w]
    """Codes of the samples that ``random`` names; with ``known`` codes, of the rest of their grids."""
    shape = prior.codes
    batch, length, mask = len(random), shape.length, shape.num_codes
    guidance = Guidance(config.guidance, labels, batch, shape.num_classes)
    if known is None:
        known = torch.full((batch, *shape.shape), -1, device=random.device)
    if known.shape != (batch, *shape.shape):
        raise ValueError(f"known: expected {(batch, *shape.shape)}, got {tuple(known.shape)}")
    codes = torch.where(known < 0, mask, known).flatten(1)  # [B, L]
    # each sample its own schedule: they may know different numbers of codes
    starts = (codes == mask).sum(1).tolist()
    schedules = torch.tensor([hidden_counts(start, config.steps, config.schedule) for start in starts])  # [B, T]
    with evaluating(prior):
        for step, left in enumerate(schedules.T.to(codes.device)):  # left [B]
            growing = config.guidance_growth == "linear" and config.steps > 1
            passed = step / (config.steps - 1) if growing else 1.0
            scale = 1 + (config.guidance - 1) * passed
            hidden = prior.gpt(guidance.rows(codes), guidance.labels)[:, 1:]  # [N, L, W]
            drawn, confidence = _draw(prior, hidden, random.uniform(length), guidance, scale, config)  # [B, L] each
            gumbel = -(-random.uniform(length).log()).log()
            confidence = confidence + config.choice_temperature * (1 - (step + 1) / config.steps) * gumbel
            masked = codes == mask
            codes = torch.where(masked, drawn, codes)
            rank = confidence.masked_fill(~masked, torch.inf).argsort(dim=1, stable=True).argsort(1)  # [B, L]
            codes = torch.where(masked & (rank < left[:, None]), mask, codes)
    return codes.unflatten(1, shape.shape)


def _draw(
    prior: MaskedPrior,
    hidden: torch.Tensor,  # [N, L, W]
    uniform: torch.Tensor,  # [B, L]
    guidance: Guidance,
    scale: float,
    config: MaskGITSamplingConfig,
) -> tuple[torch.Tensor, torch.Tensor]:  # [B, L] each
    """A code for every position, and the logarithm of its probability."""
    assert prior.gpt.head is not None
    rows = max(LOGITS_AT_ONCE // prior.codes.num_codes, 1)
    codes, confidence = [], []
    branches = [part.flatten(0, 1).split(rows) for part in hidden.split(len(uniform))]  # of [R, W]
    for chunk, *parts in zip(uniform.flatten().split(rows), *branches, strict=True):
        logits = guidance(prior.gpt.head(torch.cat(parts)), scale=scale)  # [R, K]
        scaled = logits.to(torch.float64) / config.logit_temperature
        index = draw(scaled, chunk)  # [R]
        codes.append(index)
        confidence.append(scaled.log_softmax(1).gather(1, index[:, None]).squeeze(1))
    return torch.cat(codes).view_as(uniform), torch.cat(confidence).view_as(uniform)
