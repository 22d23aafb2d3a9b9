"""Differences of pixels, means over everything. Images are ``[B, 3, H, W]`` in [-1, 1]."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def l1(reconstruction: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference."""
    return F.l1_loss(reconstruction, images)


def l2(reconstruction: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Mean squared difference."""
    return F.mse_loss(reconstruction, images)


def charbonnier(reconstruction: torch.Tensor, images: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """Mean of ``sqrt(difference^2 + eps)``: absolute from about ``sqrt(eps)`` on, smooth below (MGVQ)."""
    return (reconstruction - images).square().add(eps).sqrt().mean()


def psnr(reconstruction: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, from the squared error of the whole batch after clipping."""
    return 10 * torch.log10(4 / F.mse_loss(reconstruction.clamp(-1, 1), images))
