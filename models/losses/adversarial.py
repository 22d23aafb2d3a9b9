"""The two sides of an adversarial loss, on scores of any shape."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def discriminator_loss(real: torch.Tensor, fake: torch.Tensor, kind: str) -> torch.Tensor:
    """What the discriminator minimises, of its scores for images and for reconstructions.

    ``"hinge"`` (VQGAN): ``(mean relu(1 - real) + mean relu(1 + fake)) / 2``; ``"logistic"`` (StyleGAN2): ``mean
    softplus(-real) + mean softplus(fake)``.
    """
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: torch.Tensor, kind: str) -> torch.Tensor:
    """What the tokenizer minimises, of the scores for its reconstructions: non-saturating for ``"logistic"``."""
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


def adaptive_weight(reconstruction: torch.Tensor, adversarial: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Ratio of the gradient norms that both losses have at the decoder's last weight, at most 1e4."""
    (wanted,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (given,) = torch.autograd.grad(adversarial, last, retain_graph=True)
    return (wanted.norm() / (given.norm() + 1e-4)).clamp(max=1e4)


def gradient_penalty(discriminator: nn.Module, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W]
    """R1: half the squared norm of the score's gradient at real images, mean over images (Mescheder et al., 2018)."""
    images = images.detach().requires_grad_()
    (slope,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    return 0.5 * slope.square().sum(dim=(1, 2, 3)).mean()
