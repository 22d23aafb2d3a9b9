"""Patch tokenizer: small enough for two cores, wide enough to show what a quantizer does.

A patch of P x P pixels is one vector. 1x1 convolutions do the work, and a depthwise 3x3 in each residual
block lets neighbouring patches talk. B batch, H W pixels, P patch size, h w grid, C hidden channels, D code
dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from models.config_json import Hidden


@dataclass(frozen=True, kw_only=True)
class PatchConfig:
    """Patch tokenizer: 8x8 pixels become one vector, for two cores."""

    kind: Hidden[Literal["patch"]] = "patch"
    patch_size: int = 8  # pixels per side of a patch
    hidden: int = 256  # channels inside encoder and decoder
    blocks: int = 2  # residual blocks on either side

    def __post_init__(self) -> None:
        if self.patch_size < 1:
            raise ValueError(f"patch_size: expected at least 1, got {self.patch_size}")
        if self.hidden < 1 or self.hidden % 32:
            raise ValueError(f"hidden: expected a multiple of 32, got {self.hidden}")
        if self.blocks < 0:
            raise ValueError(f"blocks: expected at least 0, got {self.blocks}")

    @property
    def downsample(self) -> int:
        """Pixels per side of one token."""
        return self.patch_size


class ResidualBlock(nn.Module):
    """Depthwise 3x3, then two 1x1 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.widen = nn.Conv2d(channels, channels, 1)
        self.narrow = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, C, h, w]
        h = self.mix(self.norm(x))  # [B, C, h, w]
        return x + self.narrow(F.silu(self.widen(h)))  # [B, C, h, w]


class PatchEncoder(nn.Module):
    """Pixels to latent vectors."""

    def __init__(self, config: PatchConfig, code_dim: int) -> None:
        super().__init__()
        self.downsample = config.downsample
        self.input = nn.Conv2d(3 * config.patch_size**2, config.hidden, 1)
        self.blocks = nn.Sequential(*[ResidualBlock(config.hidden) for _ in range(config.blocks)])
        self.output = nn.Conv2d(config.hidden, code_dim, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, D, h, w]
        x = _channels_last(F.pixel_unshuffle(images, self.downsample))  # [B, 3PP, h, w]
        x = self.blocks(self.input(x))  # [B, C, h, w]
        return self.output(F.silu(x))  # [B, D, h, w]


class PatchDecoder(nn.Module):
    """Code vectors to pixels."""

    def __init__(self, config: PatchConfig, code_dim: int) -> None:
        super().__init__()
        self.upsample = config.patch_size
        self.input = nn.Conv2d(code_dim, config.hidden, 1)
        self.blocks = nn.Sequential(*[ResidualBlock(config.hidden) for _ in range(config.blocks)])
        self.output = nn.Conv2d(config.hidden, 3 * config.patch_size**2, 1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:  # [B, D, h, w] -> [B, 3, H, W]
        x = self.blocks(self.input(_channels_last(z)))  # [B, C, h, w]
        x = self.output(F.silu(x))  # [B, 3PP, h, w]
        return F.pixel_shuffle(x, self.upsample)  # [B, 3, H, W]


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    # a 1x1 convolution is one product of matrices then
    return x.contiguous(memory_format=torch.channels_last)
