"""One call for every kind of prior: the samples that ``random`` names, with the options that the kind has."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from models.priors.autoregressive import AutoregressivePrior
from models.priors.concept import ConceptPrior
from models.priors.concept_sampling import sample_concepts
from models.priors.diffusion import DDPM, DiffusionPrior
from models.priors.diffusion_sampling import DiffusionSamplingConfig, sample_latents
from models.priors.grouped import GroupedPrior
from models.priors.masked import MaskedPrior
from models.priors.maskgit_sampling import MaskGITSamplingConfig, sample_masked
from models.priors.sample_random import SampleRandom
from models.priors.sampling import SamplingConfig, sample_codes
from models.priors.video import VideoPrior
from models.priors.video_sampling import sample_video
from models.priors.window_sampling import sample_large

AnyPrior = AutoregressivePrior | MaskedPrior | GroupedPrior | VideoPrior | DiffusionPrior | ConceptPrior
AnySampling = SamplingConfig | MaskGITSamplingConfig | DiffusionSamplingConfig


def sampling_config(prior: AnyPrior, **options: Any) -> AnySampling:
    """How a prior is sampled; an option that is None takes its default, one that the kind lacks is an error."""
    defaults: AnySampling
    if isinstance(prior, DiffusionPrior):
        defaults = DiffusionSamplingConfig(method="ancestral" if isinstance(prior.process, DDPM) else "euler")
    elif isinstance(prior, ConceptPrior):
        defaults = DiffusionSamplingConfig(method="sde", steps=25)
    elif isinstance(prior, MaskedPrior):
        defaults = MaskGITSamplingConfig()
    else:
        defaults = SamplingConfig()
    given = {name: value for name, value in options.items() if value is not None}
    known = {field.name for field in dataclasses.fields(defaults)}
    for name in given:
        if name not in known:
            kind = prior.config.kind
            raise ValueError(f"{name}: expected none with a prior of the kind '{kind}', which has {sorted(known)}")
    return dataclasses.replace(defaults, **given)


def sample(
    prior: AnyPrior,
    config: AnySampling,
    random: SampleRandom,
    labels: torch.Tensor | None = None,  # [B]
    *,
    grid: tuple[int, int] | None = None,
    context: torch.Tensor | None = None,  # [B, F, h, w], of video
    new_frames: int = 1,
    cache: bool = True,
) -> torch.Tensor:
    """Codes [B, h, w], [B, h, w, G] or, after a context of frames, [B, F + new_frames, h, w]; latents [B, D, h, w].

    A ``grid`` larger than the prior's is sampled through a sliding window.
    """
    if isinstance(prior, DiffusionPrior | ConceptPrior | MaskedPrior) and grid is not None:
        raise ValueError(f"grid: expected none with a prior of the kind '{prior.config.kind}', got {grid}")
    if isinstance(prior, DiffusionPrior):
        assert isinstance(config, DiffusionSamplingConfig)
        return sample_latents(prior, config, random, labels)
    if isinstance(prior, ConceptPrior):
        assert isinstance(config, DiffusionSamplingConfig)
        return sample_concepts(prior, config, random, labels, cache=cache)
    if isinstance(prior, MaskedPrior):
        assert isinstance(config, MaskGITSamplingConfig)
        return sample_masked(prior, config, random, labels)
    assert isinstance(config, SamplingConfig)
    if isinstance(prior, VideoPrior):
        if context is None:
            raise ValueError("context: expected frames for a video prior, got none")
        return sample_video(prior, config, random, context, new_frames, labels, cache=cache)
    if grid is not None and grid != prior.codes.grid:
        return sample_large(prior, config, random, grid, labels, cache=cache)
    return sample_codes(prior, config, random, labels, cache=cache)
