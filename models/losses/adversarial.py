"""The two sides of an adversarial loss, on scores of any shape, and what balances it with the other losses.

Kinds: ``"hinge"`` (VQGAN), ``"vanilla"`` (taming's other choice, logistic and halved) and ``"logistic"`` (StyleGAN2,
SeQ-GAN: logistic, with the tokenizer's side non-saturating). B batch, H W pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

Kind = Literal["hinge", "vanilla", "logistic"]


def discriminator_loss(real: torch.Tensor, fake: torch.Tensor, kind: Kind = "hinge") -> torch.Tensor:
    """What the discriminator minimises, of its scores for images and for reconstructions."""
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    logistic = F.softplus(-real).mean() + F.softplus(fake).mean()
    return 0.5 * logistic if kind == "vanilla" else logistic


def generator_loss(fake: torch.Tensor, kind: Kind = "hinge") -> torch.Tensor:
    """What the tokenizer minimises, of the scores for its reconstructions."""
    return F.softplus(-fake).mean() if kind == "logistic" else -fake.mean()


def gradient_penalty(discriminator: nn.Module, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W]
    """R1: half the squared norm of the score's gradient at real images, mean over images (Mescheder et al., 2018).

    Applied every n-th step, its weight is to be n times as large. MaskGIT's "cost 10" is without the half: weight 20.
    """
    images = (images if images.dtype == torch.float64 else images.float()).detach().requires_grad_()
    # a mean of squares of small numbers: not for half precision
    with torch.autocast(images.device.type, enabled=False):
        (slope,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    return 0.5 * slope.square().sum(dim=(1, 2, 3)).mean()


def adaptive_weight(reconstruction: torch.Tensor, adversarial: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Ratio of the gradient norms that both losses have at the decoder's last weight, at most 1e4."""
    (wanted,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (given,) = torch.autograd.grad(adversarial, last, retain_graph=True)
    return (wanted.norm() / (given.norm() + 1e-4)).clamp(max=1e4)


def start_factor(step: int, start: int, warmup: int = 0) -> float:
    """0 before step ``start``; then 1, or a line that reaches 1 after ``warmup`` further steps."""
    if step < start:
        return 0.0
    return min(1.0, (step - start + 1) / (warmup + 1))
