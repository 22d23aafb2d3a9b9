"""Training losses: reconstruction, and the adversarial loss of VQGAN.

B batch, H W pixels.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def reconstruction_loss(reconstruction: torch.Tensor, images: torch.Tensor, pixel: str) -> torch.Tensor:
    """Mean absolute ("l1") or squared ("l2") difference of ``[B, 3, H, W]``."""
    return F.l1_loss(reconstruction, images) if pixel == "l1" else F.mse_loss(reconstruction, images)


def psnr(reconstruction: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], from the squared error of the whole batch."""
    return 10 * torch.log10(4 / F.mse_loss(reconstruction.clamp(-1, 1), images))


class PatchDiscriminator(nn.Module):
    """PatchGAN: one real-or-fake score per overlapping patch."""

    def __init__(self, *, layers: int = 3, channels: int = 64) -> None:
        super().__init__()
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        stages: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            stages += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[i]),
                nn.LeakyReLU(0.2),
            ]
        self.stages = nn.Sequential(*stages, nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1))
        self.apply(_init_discriminator)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, 1, h, w]
        return self.stages(images)


def discriminator_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Hinge loss of the scores of real and reconstructed images."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adversarial_loss(fake: torch.Tensor) -> torch.Tensor:
    """What the tokenizer minimises: the negated score of its reconstructions."""
    return -fake.mean()


def adaptive_weight(reconstruction: torch.Tensor, adversarial: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Ratio of the gradient norms that both losses have at the decoder's last weight, at most 1e4."""
    (wanted,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (given,) = torch.autograd.grad(adversarial, last, retain_graph=True)
    return (wanted.norm() / (given.norm() + 1e-4)).clamp(max=1e4)


def _init_discriminator(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
