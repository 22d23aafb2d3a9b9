"""VQGAN encoder and decoder, the convolutional layout of "Taming Transformers" (Esser et al., 2021).

Residual blocks at each level, stride-2 convolutions between levels, attention where the map is small, and a
1x1 convolution on either side of the quantizer. B batch, H W pixels, h w grid, C channels, Z latent channels,
D code dimension, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from models.config_json import Hidden
from models.networks.checkpointing import run_block


@dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """Convolutional VQGAN encoder and decoder, halving the map between levels."""

    kind: Hidden[Literal["vqgan"]] = "vqgan"
    patch_size: int = 1  # pixels per side that the first level sees as one; published: 1
    base_channels: int = 128  # channels at full resolution
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # channel factor of each level
    res_blocks: int = 2  # residual blocks per level (the decoder has one more)
    attention_levels: tuple[int, ...] = (4,)  # levels with self-attention after each block
    latent_channels: int = 256  # channels before the 1x1 convolution to the code dimension
    conv_groups: int = 1  # of the 1x1 convolutions around the quantizer: MGVQ mixes only the channels of a group

    def __post_init__(self) -> None:
        if self.base_channels < 1 or self.base_channels % 32:
            raise ValueError(f"base_channels: expected a multiple of 32, got {self.base_channels}")
        if min(self.multipliers, default=0) < 1:
            raise ValueError(f"multipliers: expected one or more from 1 on, got {self.multipliers}")
        if self.patch_size < 1:
            raise ValueError(f"patch_size: expected at least 1, got {self.patch_size}")
        if self.res_blocks < 1:
            raise ValueError(f"res_blocks: expected at least 1, got {self.res_blocks}")
        if self.latent_channels < 1:
            raise ValueError(f"latent_channels: expected at least 1, got {self.latent_channels}")
        if self.conv_groups < 1 or self.latent_channels % self.conv_groups:
            raise ValueError(
                f"conv_groups: expected a divisor of {self.latent_channels} channels, got {self.conv_groups}"
            )
        beyond = [level for level in self.attention_levels if not 0 <= level < len(self.multipliers)]
        if beyond:
            last = len(self.multipliers) - 1
            raise ValueError(f"attention_levels: expected levels from 0 to {last}, got {beyond[0]}")

    @property
    def downsample(self) -> int:
        """Pixels per side of one token."""
        return self.patch_size * 2 ** (len(self.multipliers) - 1)


def vqgan_f16() -> VQGANConfig:
    """16 x 16 pixels a token: 71.9 M weights with 16384 codes of 8 dimensions."""
    return VQGANConfig()


def vqgan_f8() -> VQGANConfig:
    """8 x 8 pixels a token: 70.1 M."""
    return VQGANConfig(multipliers=(1, 2, 2, 4), attention_levels=(3,))


def vqgan_pocket() -> VQGANConfig:
    """8 x 8 pixels a token with 3.0 M weights, the full resolution folded into channels, for two cores."""
    return VQGANConfig(
        patch_size=4,
        base_channels=64,
        multipliers=(1, 2),
        res_blocks=1,
        attention_levels=(1,),
        latent_channels=64,
    )


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

    def __init__(self, config: VQGANConfig, width: int) -> None:
        super().__init__()
        _check_groups(config, width)
        self.gradient_checkpointing = False
        self.downsample = config.downsample
        widths = [config.base_channels * factor for factor in config.multipliers]
        self.patch_size = config.patch_size
        self.input = nn.Conv2d(3 * config.patch_size**2, config.base_channels, 3, padding=1)
        levels, channels = [], config.base_channels
        for level, out in enumerate(widths):
            layers = _level(channels, out, config.res_blocks, level in config.attention_levels)
            if level < len(widths) - 1:
                layers.append(Downsample(out))
            levels.append(nn.Sequential(*layers))
            channels = out
        self.levels = nn.Sequential(*levels)
        self.middle = _middle(channels)
        self.norm = norm(channels)
        self.output = nn.Conv2d(channels, config.latent_channels, 3, padding=1)
        self.to_code = nn.Conv2d(config.latent_channels, width, 1, groups=config.conv_groups)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, D, h, w]
        x = self.input(F.pixel_unshuffle(images, self.patch_size))  # [B, C, H/p, W/p]
        for layers in (*self.levels, self.middle):
            for layer in layers:
                x = run_block(layer, x, checkpointing=self.gradient_checkpointing)  # [B, C, h, w]
        x = self.output(F.silu(self.norm(x)))  # [B, Z, h, w]
        return self.to_code(x)  # [B, D, h, w]


class VQGANDecoder(nn.Module):
    """Code vectors to pixels."""

    def __init__(self, config: VQGANConfig, width: int) -> None:
        super().__init__()
        _check_groups(config, width)
        self.gradient_checkpointing = False
        widths = [config.base_channels * factor for factor in config.multipliers]
        self.from_code = nn.Conv2d(width, config.latent_channels, 1, groups=config.conv_groups)
        self.input = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.middle = _middle(widths[-1])
        levels, channels = [], widths[-1]
        for level, out in reversed(list(enumerate(widths))):
            layers = _level(channels, out, config.res_blocks + 1, level in config.attention_levels)
            if level > 0:
                layers.append(Upsample(out))
            levels.append(nn.Sequential(*layers))
            channels = out
        self.levels = nn.Sequential(*levels)
        self.norm = norm(channels)
        self.patch_size = config.patch_size
        self.output = nn.Conv2d(channels, 3 * config.patch_size**2, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:  # [B, D, h, w] -> [B, 3, H, W]
        x = self.input(self.from_code(z))  # [B, C, h, w]
        for layers in (self.middle, *self.levels):
            for layer in layers:
                x = run_block(layer, x, checkpointing=self.gradient_checkpointing)  # [B, C, h, w]
        return F.pixel_shuffle(self.output(F.silu(self.norm(x))), self.patch_size)  # [B, 3, H, W]


def _level(channels: int, out_channels: int, blocks: int, attention: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for number in range(blocks):
        layers.append(ResidualBlock(channels if number == 0 else out_channels, out_channels))
        if attention:
            layers.append(Attention(out_channels))
    return layers


def _middle(channels: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(channels, channels), Attention(channels), ResidualBlock(channels, channels))


def _check_groups(config: VQGANConfig, width: int) -> None:
    if width % config.conv_groups:
        raise ValueError(f"conv_groups: expected a divisor of the width {width}, got {config.conv_groups}")
