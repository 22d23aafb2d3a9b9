"""Sampling of concept priors: token after token, each by a flow under what the transformer made of the earlier ones.

B samples, N rows of the network (B, or 2B with guidance), T tokens of a sample, D token dimension.
"""

from __future__ import annotations

from typing import Literal

import torch

from models.priors.concept import ConceptPrior
from models.priors.diffusion_sampling import DiffusionSamplingConfig, denoised
from models.priors.guidance import Guidance
from models.priors.sample_random import SampleRandom
from models.priors.sampling import evaluating


def sample_concepts(
    prior: ConceptPrior,
    config: DiffusionSamplingConfig,
    random: SampleRandom,
    labels: torch.Tensor | None = None,  # [B]
    *,
    guidance_growth: Literal["constant", "linear"] = "linear",
    cache: bool = True,
) -> torch.Tensor:  # [B, T, D]
    """Tokens of the samples that ``random`` names.

    With "linear" growth the guidance of token i (from 1) of T is 1 + (s - 1) i / T. ``cache=False`` computes every
    position again for every token: the same tokens, slowly.
    """
    shape = prior.codes
    guidance = Guidance(config.guidance, labels, len(random), shape.num_classes)
    if config.cfg_channels is not None:
        raise ValueError(f"cfg_channels: expected none for tokens, got {config.cfg_channels}")
    stored = prior.gpt.new_cache() if cache else None
    dtype = prior.position.dtype
    tokens = torch.empty(len(random), 0, shape.code_dim, device=random.device, dtype=dtype)
    with evaluating(prior):
        for index in range(shape.length):
            unseen = tokens if stored is None else tokens[:, max(stored.length - 1, 0) :]
            hidden = prior.gpt(guidance.rows(unseen), guidance.labels, stored)[:, -1]  # [N, W]
            condition = hidden + prior.position[index]
            growth = (index + 1) / shape.length if guidance_growth == "linear" else 1.0
            scale = 1 + (config.guidance - 1) * growth

            def velocity(
                x: torch.Tensor, time: torch.Tensor, condition: torch.Tensor = condition, scale: float = scale
            ) -> torch.Tensor:
                return guidance(prior.head(guidance.rows(x), guidance.rows(time), condition), scale=scale)

            start = random.normal(shape.code_dim).to(dtype)
            token = denoised(velocity, prior.process, start, config, random)  # [B, D]
            tokens = torch.cat([tokens, token.unsqueeze(1)], dim=1)
    return tokens
