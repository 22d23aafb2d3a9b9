"""REPA: what a transformer knows of an image, held against the features of a pretrained network.

B batch, F feature channels, h w and H W two grids.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def feature_alignment(
    projected: torch.Tensor,  # [B, F, h, w]
    features: torch.Tensor,  # [B, F, H, W]
) -> torch.Tensor:  # []
    """Mean over the grid of the negative cosine; the projected map is resized to that of the features (bicubic)."""
    if projected.shape[:2] != features.shape[:2]:
        raise ValueError(
            f"repa_features: expected the {features.shape[1]} channels of the pretrained network, "
            f"got {projected.shape[1]}"
        )
    projected = projected.float()
    if projected.shape[2:] != features.shape[2:]:
        projected = F.interpolate(projected, features.shape[2:], mode="bicubic", align_corners=False)
    return -F.cosine_similarity(projected, features.float(), dim=1).mean()
