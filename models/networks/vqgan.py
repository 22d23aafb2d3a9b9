"""VQGAN encoder and decoder, the convolutional layout of "Taming Transformers" (Esser et al., 2021).

Residual blocks at each level, stride-2 convolutions between levels, attention where the map is small, and a
1x1 convolution on either side of the quantizer. B batch, H W pixels, h w grid, C channels, Z latent channels,
D code dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from models.config_json import Hidden


@dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """Convolutional VQGAN encoder and decoder, halving the map between levels."""

    kind: Hidden[Literal["vqgan"]] = "vqgan"
    base_channels: int = 128  # channels at full resolution
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # channel factor of each level
    res_blocks: int = 2  # residual blocks per level (the decoder has one more)
    attention_levels: tuple[int, ...] = (4,)  # levels with self-attention after each block
    latent_channels: int = 256  # channels before the 1x1 convolution to the code dimension

    @property
    def downsample(self) -> int:
        """Pixels per side of one token."""
        return 2 ** (len(self.multipliers) - 1)


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, 1x1 where the channels change."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = norm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, C', h, w]
        h = self.conv1(F.silu(self.norm1(x)))  # [B, C', h, w]
        h = self.conv2(F.silu(self.norm2(h)))  # [B, C', h, w]
        return self.shortcut(x) + h  # [B, C', h, w]


class Attention(nn.Module):
    """One head over all positions of the map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.output = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, C, h, w]
        h = self.norm(x)  # [B, C, h, w]
        q, k, v = (layer(h).flatten(2).mT for layer in (self.query, self.key, self.value))  # [B, hw, C]
        h = F.scaled_dot_product_attention(q, k, v)  # [B, hw, C], scaled by C^-0.5
        return x + self.output(h.mT.reshape(x.shape))  # [B, C, h, w]


class Downsample(nn.Module):
    """Stride-2 convolution, padded on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, C, h/2, w/2]
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, C, 2h, 2w]
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class VQGANEncoder(nn.Module):
    """Pixels to latent vectors."""

    def __init__(self, config: VQGANConfig, code_dim: int) -> None:
        super().__init__()
        widths = [config.base_channels * factor for factor in config.multipliers]
        self.downsample = config.downsample
        self.input = nn.Conv2d(3, config.base_channels, 3, padding=1)
        levels, channels = [], config.base_channels
        for level, width in enumerate(widths):
            layers = _level(channels, width, config.res_blocks, level in config.attention_levels)
            if level < len(widths) - 1:
                layers.append(Downsample(width))
            levels.append(nn.Sequential(*layers))
            channels = width
        self.levels = nn.Sequential(*levels)
        self.middle = _middle(channels)
        self.norm = norm(channels)
        self.output = nn.Conv2d(channels, config.latent_channels, 3, padding=1)
        self.to_code = nn.Conv2d(config.latent_channels, code_dim, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, D, h, w]
        x = self.input(images)  # [B, C, H, W]
        x = self.levels(x)  # [B, C, h, w], halved between levels
        x = self.middle(x)  # [B, C, h, w]
        x = self.output(F.silu(self.norm(x)))  # [B, Z, h, w]
        return self.to_code(x)  # [B, D, h, w]


class VQGANDecoder(nn.Module):
    """Code vectors to pixels."""

    def __init__(self, config: VQGANConfig, code_dim: int) -> None:
        super().__init__()
        widths = [config.base_channels * factor for factor in config.multipliers]
        self.from_code = nn.Conv2d(code_dim, config.latent_channels, 1)
        self.input = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.middle = _middle(widths[-1])
        levels, channels = [], widths[-1]
        for level, width in reversed(list(enumerate(widths))):
            layers = _level(channels, width, config.res_blocks + 1, level in config.attention_levels)
            if level > 0:
                layers.append(Upsample(width))
            levels.append(nn.Sequential(*layers))
            channels = width
        self.levels = nn.Sequential(*levels)
        self.norm = norm(channels)
        self.output = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:  # [B, D, h, w] -> [B, 3, H, W]
        x = self.input(self.from_code(z))  # [B, C, h, w]
        x = self.middle(x)  # [B, C, h, w]
        x = self.levels(x)  # [B, C, H, W], doubled between levels
        return self.output(F.silu(self.norm(x)))  # [B, 3, H, W]


def _level(channels: int, width: int, blocks: int, attention: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for number in range(blocks):
        layers.append(ResidualBlock(channels if number == 0 else width, width))
        if attention:
            layers.append(Attention(width))
    return layers


def _middle(channels: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(channels, channels), Attention(channels), ResidualBlock(channels, channels))
