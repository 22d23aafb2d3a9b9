"""DC-AE, the deep compression autoencoder (Chen et al., 2024), with the grouped 1x1 convolutions of MGVQ.

Residual convolutions in the first stages, EfficientViT blocks (ReLU linear attention, then a gated convolution) in
the deeper ones. Where the map changes its size, pixels move into channels or back: beside a convolution, by a
shortcut without weights. B batch, H W pixels, h w grid or map, C channels, N positions, E channels of a head, D code
dimension, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from models.config_json import Hidden
from models.networks.checkpointing import run_block
from models.networks.precision import at_least_float32, float32


@dataclass(frozen=True, kw_only=True)
class DCAEConfig:
    """Deep compression autoencoder in the sizes of MGVQ; a tuple has one number a stage, full resolution first."""

    kind: Hidden[Literal["dcae"]] = "dcae"
    widths: tuple[int, ...] = (128, 256, 512, 512, 1024)  # channels
    encoder_depths: tuple[int, ...] = (0, 4, 8, 2, 2)  # blocks; 0 in the first stage starts at half resolution
    decoder_depths: tuple[int, ...] = (0, 5, 10, 2, 2)  # blocks
    conv_stages: int = 3  # stages of convolutions; those after them have attention
    head_dim: int = 32  # channels of an attention head
    conv_groups: int = 1  # of the 1x1 convolutions around the quantizer: each mixes the channels of its group

    def __post_init__(self) -> None:
        for name in ("encoder_depths", "decoder_depths"):
            depths = getattr(self, name)
            if len(depths) != len(self.widths) or min(depths[1:], default=0) < 1 or depths[0] < 0:
                raise ValueError(
                    f"{name}: expected {len(self.widths)} numbers of blocks, only the first 0, got {depths}"
                )
        if min((self.head_dim, *self.widths)) < 1:
            raise ValueError(f"widths, head_dim: expected at least 1, got {self.widths}, {self.head_dim}")
        for before, after in zip(self.widths, self.widths[1:], strict=False):
            # the shortcuts move 4 pixels of one stage into the channels of the next, and back
            if (4 * before) % after or after % 4 or before % 4 or (4 * before) < after:
                expected = f"{after} to divide 4 * {before}, both multiples of 4"
                raise ValueError(f"widths: expected {expected}, got {self.widths}")
        uneven = [width for width in self.widths[self.conv_stages :] if width % self.head_dim]
        if uneven:
            raise ValueError(f"head_dim: expected a divisor of {uneven[0]} channels, got {self.head_dim}")

    @property
    def downsample(self) -> int:
        """Pixels per side of one token."""
        return 2 ** (len(self.widths) - 1)


def dcae_f8() -> DCAEConfig:
    """8 x 8 pixels a token: 127.9 M weights at 32 channels, 128.2 M with the codes of MGVQ-G4."""
    return DCAEConfig(widths=(128, 256, 512, 512), encoder_depths=(0, 4, 8, 2), decoder_depths=(0, 5, 10, 2))


def dcae_f16() -> DCAEConfig:
    """16 x 16 pixels a token: 216.0 M with the codes."""
    return DCAEConfig()


def dcae_f32() -> DCAEConfig:
    """32 x 32 pixels a token: 323.6 M with the codes."""
    widths = (128, 256, 512, 512, 1024, 1024)
    return DCAEConfig(widths=widths, encoder_depths=(0, 4, 8, 2, 2, 2), decoder_depths=(0, 5, 10, 2, 2, 2))


def dcae_pocket() -> DCAEConfig:
    """8 x 8 pixels a token with 0.9 M weights, for two cores."""
    return DCAEConfig(widths=(32, 64, 64, 64), encoder_depths=(0, 1, 1, 1), decoder_depths=(0, 1, 2, 1))


class ChannelNorm(nn.Module):
    """Root mean square norm over the channels of each position, with scale and shift."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, C, h, w]
        # in float32, as the squares ask for, whatever the autocast
        h = F.rms_norm(at_least_float32(x.movedim(1, -1)), self.weight.shape, self.weight, eps=1e-5) + self.bias
        return h.movedim(-1, 1).to(x.dtype)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the norm comes last: over channels in the encoder, over the batch in the decoder."""

    def __init__(self, channels: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.activation = nn.ReLU() if batch_norm else nn.SiLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels) if batch_norm else ChannelNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, C, h, w]
        return x + self.norm(self.conv2(self.activation(self.conv1(x))))


class LinearAttention(nn.Module):
    """Attention with similarity ReLU(q) . ReLU(k), which needs N E^2 operations and never N^2."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)  # query, key and value of a head together
        self.output = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = ChannelNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, C, h, w]
        qkv = self.qkv(x).flatten(2).unflatten(1, (-1, 3 * self.head_dim))  # [B, heads, 3E, N]
        h = _linear_attention(*qkv.chunk(3, dim=2))  # [B, heads, E, N]
        return x + self.norm(self.output(h.reshape(x.shape)))


def _linear_attention(
    q: torch.Tensor,  # [B, heads, E, N]
    k: torch.Tensor,  # [B, heads, E, N]
    v: torch.Tensor,  # [B, heads, E, N]
) -> torch.Tensor:  # [B, heads, E, N] float32
    # sums over all positions: half precision would lose them, whatever the autocast
    with float32(q.device):
        q, k, v = (at_least_float32(part) for part in (F.relu(q), F.relu(k), v))
        total = v @ k.mT @ q  # [B, heads, E, N]
        weight = k.sum(dim=-1, keepdim=True).mT @ q  # [B, heads, 1, N]
        return total / (weight + 1e-15)


class GatedConvolution(nn.Module):
    """1x1 to eight times the channels, depthwise 3x3, one half gated by the other, 1x1 back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(channels, 8 * channels, 1)
        self.mix = nn.Conv2d(8 * channels, 8 * channels, 3, padding=1, groups=8 * channels)
        self.narrow = nn.Conv2d(4 * channels, channels, 1, bias=False)
        self.norm = ChannelNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, C, h, w]
        h, gate = self.mix(F.silu(self.widen(x))).chunk(2, dim=1)  # [B, 4C, h, w] each
        return x + self.norm(self.narrow(h * F.silu(gate)))


class Downsample(nn.Module):
    """Half the map: a convolution beside the mean over neighbours among the channels, where there is a shortcut."""

    def __init__(self, channels: int, out_channels: int, *, shortcut: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels // 4, 3, padding=1)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, C', h/2, w/2]
        h = F.pixel_unshuffle(self.conv(x), 2)  # [B, C', h/2, w/2]
        return h + _channel_means(F.pixel_unshuffle(x, 2), h.shape[1]) if self.shortcut else h


class Upsample(nn.Module):
    """Twice the map: a convolution beside repeated channels, where there is a shortcut."""

    def __init__(self, channels: int, out_channels: int, *, shortcut: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * out_channels, 3, padding=1)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, C', 2h, 2w]
        h = self.conv(x)  # [B, 4C', h, w]
        return F.pixel_shuffle(h + _repeated(x, h.shape[1]) if self.shortcut else h, 2)


class DCAEEncoder(nn.Module):
    """Pixels to latent vectors."""

    def __init__(self, config: DCAEConfig, width: int) -> None:
        super().__init__()
        _check_width(config, width)
        self.gradient_checkpointing = False
        self.downsample, self.width = config.downsample, width
        blocks: list[nn.Module] = []
        for stage, (channels, depth) in enumerate(zip(config.widths, config.encoder_depths, strict=True)):
            if stage > 0 and (stage > 1 or config.encoder_depths[0]):
                blocks.append(Downsample(config.widths[stage - 1], channels))
            blocks += _stage(config, stage, depth, batch_norm=False)
        if config.encoder_depths[0]:
            self.input: nn.Module = nn.Conv2d(3, config.widths[0], 3, padding=1)
        else:
            self.input = Downsample(3, config.widths[1], shortcut=False)
        self.blocks = nn.ModuleList(blocks)
        self.output = nn.Conv2d(config.widths[-1], width, 3, padding=1)
        self.to_code = nn.Conv2d(width, width, 1, groups=config.conv_groups)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, D, h, w]
        x = self.input(images)  # [B, C, H, W] or half of that
        for block in self.blocks:
            x = run_block(block, x, checkpointing=self.gradient_checkpointing)  # [B, C, h, w]
        return self.to_code(self.output(x) + _channel_means(x, self.width))  # [B, D, h, w]


class DCAEDecoder(nn.Module):
    """Code vectors to pixels."""

    def __init__(self, config: DCAEConfig, width: int) -> None:
        super().__init__()
        _check_width(config, width)
        self.gradient_checkpointing = False
        self.from_code = nn.Conv2d(width, width, 1, groups=config.conv_groups)
        self.input = nn.Conv2d(width, config.widths[-1], 3, padding=1)
        blocks: list[nn.Module] = []
        for stage in reversed(range(len(config.widths))):
            channels, depth = config.widths[stage], config.decoder_depths[stage]
            if stage < len(config.widths) - 1 and depth:
                blocks.append(Upsample(config.widths[stage + 1], channels))
            blocks += _stage(config, stage, depth, batch_norm=True)
        self.blocks = nn.ModuleList(blocks)
        self.half = config.decoder_depths[0] == 0  # the last doubling is a shuffle of the output
        last = config.widths[1 if self.half else 0]
        self.norm = ChannelNorm(last)
        self.output = nn.Conv2d(last, 12 if self.half else 3, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:  # [B, D, h, w] -> [B, 3, H, W]
        z = self.from_code(z)  # [B, D, h, w]
        x = self.input(z)  # [B, C, h, w]
        x = x + _repeated(z, x.shape[1])  # [B, C, h, w]
        for block in self.blocks:
            x = run_block(block, x, checkpointing=self.gradient_checkpointing)  # [B, C, H, W] or half of that
        x = self.output(F.relu(self.norm(x)))  # [B, 3, H, W] or [B, 12, H/2, W/2]
        return F.pixel_shuffle(x, 2) if self.half else x  # [B, 3, H, W]


def _stage(config: DCAEConfig, stage: int, depth: int, *, batch_norm: bool) -> list[nn.Module]:
    channels = config.widths[stage]
    if stage < config.conv_stages:
        return [ResidualBlock(channels, batch_norm=batch_norm) for _ in range(depth)]
    parts = [(LinearAttention(channels, config.head_dim), GatedConvolution(channels)) for _ in range(depth)]
    return [nn.Sequential(*part) for part in parts]


def _channel_means(x: torch.Tensor, channels: int) -> torch.Tensor:  # [B, C, h, w] -> [B, channels, h, w]
    """Neighbouring channels averaged."""
    return x.unflatten(1, (channels, -1)).mean(dim=2)


def _repeated(x: torch.Tensor, channels: int) -> torch.Tensor:  # [B, C, h, w] -> [B, channels, h, w]
    """Each channel several times over."""
    return x.repeat_interleave(channels // x.shape[1], dim=1)


def _check_width(config: DCAEConfig, width: int) -> None:
    if config.widths[-1] % width:
        raise ValueError(f"width: expected a divisor of {config.widths[-1]} channels, got {width}")
    if width % config.conv_groups:
        raise ValueError(f"conv_groups: expected a divisor of the width {width}, got {config.conv_groups}")
