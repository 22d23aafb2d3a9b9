"""SeQ-GAN's tokenizer: the convolution-only network of MaskGIT, and attention for the decoder of its second phase.

Residual blocks at each level, average pooling between the encoder's levels, nearest neighbour and a convolution
between the decoder's, no attention and no convolution around the quantizer. For phase 2 every decoder stage gets
pairs of block attention (inside windows of P x P positions) and dilated attention (over positions of equal offset
in all windows); their output projections start at zero, so that phase 2 starts where phase 1 ended, to the bit.
B batch, H W pixels, h w grid or map, C channels, P side of a window, D code dimension.
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
class MaskGITConvConfig:
    """Convolution-only encoder and decoder of SeQ-GAN, attention in the decoder by option."""

    kind: Hidden[Literal["maskgit_conv"]] = "maskgit_conv"
    patch_size: int = 1  # pixels per side that the first level sees as one; published: 1
    base_channels: int = 128  # channels at full resolution
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # channel factor of each level
    res_blocks: int = 2  # residual blocks per level and at the end of the encoder, the start of the decoder
    extra_blocks: int = 0  # more residual blocks per decoder level (the paper's ablation "Conv x2" has 2)
    attention_pairs: int = 0  # block and dilated attention per decoder level (0 in phase 1, 1 in phase 2)
    windows: tuple[int, ...] = (16, 8, 8, 4, 4)  # side of an attention window, level by level from full resolution

    def __post_init__(self) -> None:
        if self.base_channels < 1 or self.base_channels % 32:
            raise ValueError(f"base_channels: expected a multiple of 32, got {self.base_channels}")
        if min(self.multipliers, default=0) < 1:
            raise ValueError(f"multipliers: expected one or more from 1 on, got {self.multipliers}")
        if self.patch_size < 1:
            raise ValueError(f"patch_size: expected at least 1, got {self.patch_size}")
        if self.res_blocks < 1:
            raise ValueError(f"res_blocks: expected at least 1, got {self.res_blocks}")
        if self.attention_pairs and len(self.windows) != len(self.multipliers):
            expected = f"one window for each of the {len(self.multipliers)} levels"
            raise ValueError(f"windows: expected {expected}, got {self.windows}")

    @property
    def downsample(self) -> int:
        """Pixels per side of one token."""
        return self.patch_size * 2 ** (len(self.multipliers) - 1)


def maskgit_conv_pocket() -> MaskGITConvConfig:
    """8 x 8 pixels a token with 1.5 M weights, the full resolution folded into channels, for two cores."""
    return MaskGITConvConfig(patch_size=4, base_channels=64, multipliers=(1, 2), res_blocks=1, windows=(8, 4))


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, 1x1 where the channels change; no biases."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = norm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        same = channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, C', h, w]
        h = self.conv1(F.silu(self.norm1(x)))  # [B, C', h, w]
        h = self.conv2(F.silu(self.norm2(h)))  # [B, C', h, w]
        return self.shortcut(x) + h  # [B, C', h, w]


class WindowAttention(nn.Module):
    """Attention with a residual, heads of 32 channels, inside windows or, dilated, across them."""

    def __init__(self, channels: int, window: int, *, dilated: bool) -> None:
        super().__init__()
        self.window, self.dilated = window, dilated
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.output = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, C, h, w]
        batch, channels, height, width = x.shape
        side = self.window
        if height % side or width % side:
            raise ValueError(f"x: expected a map whose sides are multiples of {side}, got {height}x{width}")
        rows, columns = height // side, width // side
        # a position is (row of windows, row inside, column of windows, column inside)
        split = (batch, 3, channels // 32, 32, rows, side, columns, side)
        # [3, B, h/P, w/P, heads, P, P, 32], or [3, B, P, P, heads, h/P, w/P, 32]
        order = (1, 0, 5, 7, 2, 4, 6, 3) if self.dilated else (1, 0, 4, 6, 2, 5, 7, 3)
        qkv = self.qkv(self.norm(x)).reshape(split).permute(order)
        apart = qkv.shape[1:]
        q, k, v = qkv.flatten(5, 6).flatten(1, 3)  # each [windows, heads, positions, 32]
        h = F.scaled_dot_product_attention(q, k, v).reshape(apart)
        # back to [B, heads, 32, rows, P, columns, P]
        h = h.permute(0, 3, 6, 4, 1, 5, 2) if self.dilated else h.permute(0, 3, 6, 1, 4, 2, 5)
        return x + self.output(h.reshape(x.shape))  # [B, C, h, w]


class MaskGITConvEncoder(nn.Module):
    """Pixels to latent vectors."""

    def __init__(self, config: MaskGITConvConfig, width: int) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.downsample = config.downsample
        widths = [config.base_channels * factor for factor in config.multipliers]
        self.patch_size = config.patch_size
        self.input = nn.Conv2d(3 * config.patch_size**2, config.base_channels, 3, padding=1, bias=False)
        before = [config.base_channels, *widths]
        levels = [_blocks(before[level], out, config.res_blocks) for level, out in enumerate(widths)]
        self.levels = nn.ModuleList(levels)
        self.middle = _blocks(widths[-1], widths[-1], config.res_blocks)
        self.norm = norm(widths[-1])
        self.output = nn.Conv2d(widths[-1], width, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, D, h, w]
        x = self.input(F.pixel_unshuffle(images, self.patch_size))  # [B, C, H/p, W/p]
        for number, level in enumerate(self.levels):
            x = self._run(level, F.avg_pool2d(x, 2) if number else x)  # [B, C, h, w], halved between levels
        x = self._run(self.middle, x)  # [B, C, h, w]
        return self.output(F.silu(self.norm(x)))  # [B, D, h, w]

    def _run(self, blocks: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
        for block in blocks:
            x = run_block(block, x, checkpointing=self.gradient_checkpointing)
        return x


class DecoderLevel(nn.Module):
    """Residual blocks, pairs of attention if any, and a doubling of the map if there is a level above."""

    def __init__(self, channels: int, out_channels: int, config: MaskGITConvConfig, level: int) -> None:
        super().__init__()
        self.blocks = _blocks(channels, out_channels, config.res_blocks + config.extra_blocks)
        attention = [
            WindowAttention(out_channels, config.windows[level], dilated=dilated)
            for _ in range(config.attention_pairs)
            for dilated in (False, True)
        ]
        self.attention = nn.Sequential(*attention)
        self.upsample = nn.Conv2d(out_channels, out_channels, 3, padding=1) if level else None

    def forward(self, x: torch.Tensor, checkpointing: bool) -> torch.Tensor:  # [B, C, h, w] -> [B, C', 2h, 2w]
        for block in (*self.blocks, *self.attention):
            x = run_block(block, x, checkpointing=checkpointing)  # [B, C', h, w]
        return x if self.upsample is None else self.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class MaskGITConvDecoder(nn.Module):
    """Code vectors to pixels."""

    grown = ".attention."  # in the names of what a decoder of phase 1 lacks

    def __init__(self, config: MaskGITConvConfig, width: int) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        widths = [config.base_channels * factor for factor in config.multipliers]
        self.input = nn.Conv2d(width, widths[-1], 3, padding=1)
        self.middle = _blocks(widths[-1], widths[-1], config.res_blocks)
        before = [*widths[1:], widths[-1]]
        levels = [DecoderLevel(before[level], out, config, level) for level, out in enumerate(widths)]
        self.levels = nn.ModuleList(reversed(levels))
        self.norm = norm(widths[0])
        self.patch_size = config.patch_size
        self.output = nn.Conv2d(widths[0], 3 * config.patch_size**2, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:  # [B, D, h, w] -> [B, 3, H, W]
        x = self.input(z)  # [B, C, h, w]
        for block in self.middle:
            x = run_block(block, x, checkpointing=self.gradient_checkpointing)  # [B, C, h, w]
        for level in self.levels:
            x = level(x, self.gradient_checkpointing)  # [B, C, H, W], doubled between levels
        return F.pixel_shuffle(self.output(F.silu(self.norm(x))), self.patch_size)  # [B, 3, H, W]


def _blocks(channels: int, out_channels: int, number: int) -> nn.Sequential:
    return nn.Sequential(*[ResidualBlock(out_channels if i else channels, out_channels) for i in range(number)])
