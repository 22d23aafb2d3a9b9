"""What a prior holds most likely at every position, when all that comes before is the truth (SeQ-GAN).

B samples, L positions, G groups, W width.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from models.priors.autoregressive import AutoregressivePrior
from models.priors.corruption import flat_codes
from models.priors.grouped import GroupedPrior
from models.priors.sampling import evaluating


def top_predictions(
    prior: AutoregressivePrior | GroupedPrior,
    codes: torch.Tensor,  # [B, h, w] or [B, h, w, G], with frames [B, T, h, w]
    labels: torch.Tensor | None = None,  # [B]
) -> torch.Tensor:  # as codes
    """The most probable index of each position, and of each group after the true ones before it, in one pass."""
    shape = prior.codes
    targets = flat_codes(codes, shape.shape, shape.groups)  # [B, L] or [B, L, G]
    with evaluating(prior):
        hidden = prior.gpt(targets[:, :-1], labels)  # [B, L, W]
        if isinstance(prior, AutoregressivePrior):
            assert prior.gpt.head is not None
            return prior.gpt.head(hidden).argmax(2).view_as(codes)
        features = prior.head(hidden.flatten(0, 1), targets.flatten(0, 1)[:, :-1])  # [BL, G, W]
        chosen = [
            F.linear(features[:, group], prior.head.output_weight(group)).argmax(1) for group in range(shape.groups)
        ]
    return torch.stack(chosen, dim=1).view_as(codes)
