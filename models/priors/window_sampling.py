"""Sampling of grids larger than the prior's own: each code is drawn inside a window of codes around it.

The window is the prior's grid, centred on the code where the borders allow (VQGAN). A step of the window changes the
place of every code in it, so that the cache serves only while the window rests: along the borders.
B samples, H W large grid, h w window, G groups.
"""

from __future__ import annotations

import torch

from models.priors.autoregressive import AutoregressivePrior
from models.priors.grouped import GroupedPrior
from models.priors.sample_random import SampleRandom
from models.priors.sampling import Picker, SamplingConfig, evaluating, extend


def window_start(position: int, size: int, window: int) -> int:
    """First row (or column) of the window for a code at ``position`` of ``size``."""
    return min(max(position - window // 2, 0), size - window)


def sample_large(
    prior: AutoregressivePrior | GroupedPrior,
    config: SamplingConfig,
    random: SampleRandom,
    grid: tuple[int, int],
    labels: torch.Tensor | None = None,  # [B]
    *,
    cache: bool = True,
) -> torch.Tensor:  # [B, H, W] or [B, H, W, G]
    """Codes of a ``grid`` [H, W] of any size from the window's up, from nothing but the prefix.

    ``cache=False`` computes every position again for every code: the same codes, slowly.
    """
    shape = prior.codes
    if shape.frames > 1:
        raise ValueError(f"frames: expected 1, got {shape.frames}")
    if grid[0] < shape.grid[0] or grid[1] < shape.grid[1]:
        raise ValueError(f"grid: expected at least the prior's {shape.grid}, got {grid}")
    groups = (shape.groups,) if shape.groups > 1 else ()
    pick = Picker(config, random, grid[0] * grid[1] * shape.groups, shape, labels)
    stored = prior.gpt.new_cache() if cache else None
    codes = torch.zeros(len(random), *grid, *groups, dtype=torch.int64, device=random.device)
    before = None
    with evaluating(prior):
        for row in range(grid[0]):
            for column in range(grid[1]):
                top, left = (window_start(*where) for where in zip((row, column), grid, shape.grid, strict=True))
                if (top, left) != before and stored is not None:
                    stored.clear()
                before = top, left
                window = codes[:, top : top + shape.grid[0], left : left + shape.grid[1]].flatten(1, 2)
                known = window[:, : (row - top) * shape.grid[1] + column - left]
                codes[:, row, column] = extend(prior, known, 1, pick, stored)[:, -1]
    return codes
