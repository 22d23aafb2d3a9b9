"""Sampling of video priors, frame after frame, over a sliding window of frames.

While the window grows, the cache goes on from frame to frame. When it slides, every code moves to another frame
embedding and loses its past, so that no stored key is right any more: the context is encoded again, in one pass
for all of its codes, and the cache serves the new frame.
B samples, T frames of a window, F frames of a video, h w grid.
"""

from __future__ import annotations

import torch

from models.priors.sample_random import SampleRandom
from models.priors.sampling import Picker, SamplingConfig, evaluating, extend
from models.priors.video import VideoPrior


def sample_video(
    prior: VideoPrior,
    config: SamplingConfig,
    random: SampleRandom,
    context: torch.Tensor,  # [B, F, h, w], the frames to go on from
    new_frames: int,
    labels: torch.Tensor | None = None,  # [B]
    *,
    cache: bool = True,
) -> torch.Tensor:  # [B, F + new_frames, h, w]
    """The context and ``new_frames`` more. A prior trained on next frames only needs T - 1 frames of context.

    ``cache=False`` computes every position again for every code: the same codes, slowly.
    """
    shape = prior.codes
    if context.ndim != 4 or context.shape[0] != len(random) or context.shape[2:] != shape.grid:
        expected = f"[{len(random)}, F, {shape.grid[0]}, {shape.grid[1]}]"
        raise ValueError(f"context: expected {expected}, got {tuple(context.shape)}")
    if new_frames < 1:
        raise ValueError(f"new_frames: expected at least 1, got {new_frames}")
    least = 0 if prior.config.scored == "all" else shape.frames - 1
    if context.shape[1] < least:
        raise ValueError(f"context: expected at least {least} frames, got {context.shape[1]}")
    pick = Picker(config, random, new_frames * shape.cells, shape, labels)
    stored = prior.gpt.new_cache() if cache else None
    video = context.to(torch.int64).flatten(1)  # [B, Fhw]
    window_start = 0
    with evaluating(prior):
        for frame in range(context.shape[1], context.shape[1] + new_frames):
            start = max(frame - (shape.frames - 1), 0)
            if start != window_start and stored is not None:
                stored.clear()
            window_start = start
            window = extend(prior, video[:, start * shape.cells :], shape.cells, pick, stored)
            video = torch.cat([video, window[:, -shape.cells :]], dim=1)
    return video.unflatten(1, (-1, *shape.grid))
