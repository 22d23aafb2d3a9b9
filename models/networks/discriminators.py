"""Discriminators: PatchGAN (pix2pix, taming VQGAN) and the residual one of StyleGAN2.

B batch, H W pixels, h w map of scores, C channels, M images of a group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from models.config_json import Hidden
from models.networks.precision import at_least_float32

_MOST_LAYERS = 16  # one score for 196608 pixels per side


@dataclass(frozen=True, kw_only=True)
class PatchGANConfig:
    """One score for each of many overlapping patches, with batch norm."""

    kind: Hidden[Literal["patchgan"]] = "patchgan"
    layers: int = 3  # strided convolutions: 3 sees 70 pixels a score, 2 sees 34
    channels: int = 64  # after the first of them

    def __post_init__(self) -> None:
        for name in ("layers", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.layers > _MOST_LAYERS:
            raise ValueError(f"layers: expected at most {_MOST_LAYERS}, got {self.layers}")

    @property
    def smallest_image(self) -> int:
        """Pixels per side below which no score is left."""
        return 3 * 2**self.layers  # two convolutions of size 4 take one position each from what the strides leave

    def check_image_size(self, image_size: int) -> None:
        """Raises ValueError for images that are too small."""
        if image_size < self.smallest_image:
            expected = f"images of at least {self.smallest_image} pixels for {self.layers} layers"
            raise ValueError(f"layers: expected {expected}, got {image_size} pixels")


@dataclass(frozen=True, kw_only=True)
class StyleGAN2Config:
    """One score an image, from residual blocks with blurred downsampling and no norm."""

    kind: Hidden[Literal["stylegan2"]] = "stylegan2"
    image_size: int = 256  # pixels per side, a power of two
    channels_times_size: int = 16384  # channels of a map times its side...
    max_channels: int = 512  # ...but no more channels than this
    minibatch_stddev: int = 0  # images whose deviation becomes one more channel; 0 is off
    equalized_lr: bool = False  # weights of unit variance, scaled when used

    def __post_init__(self) -> None:
        size = self.image_size
        if size < 8 or size & (size - 1):
            raise ValueError(f"image_size: expected a power of two from 8 on, got {size}")
        if self.max_channels < 1:
            raise ValueError(f"max_channels: expected at least 1, got {self.max_channels}")
        if self.channels_times_size < size:
            raise ValueError(f"channels_times_size: expected at least {size}, got {self.channels_times_size}")

    def channels(self, size: int) -> int:
        """Of a map of ``size`` positions per side."""
        return min(self.max_channels, self.channels_times_size // size)

    def check_image_size(self, image_size: int) -> None:
        """Raises ValueError for images of another size."""
        if image_size != self.image_size:
            raise ValueError(f"image_size: expected that of the images, {image_size}, got {self.image_size}")


DiscriminatorConfig = PatchGANConfig | StyleGAN2Config


def stylegan2_pocket() -> StyleGAN2Config:
    """Images of 64 pixels, 0.7 M weights, for two cores."""
    return StyleGAN2Config(image_size=64, channels_times_size=2048, max_channels=96)


def build_discriminator(config: DiscriminatorConfig) -> nn.Module:
    """The discriminator of a config, with fresh weights."""
    return PatchGAN(config) if isinstance(config, PatchGANConfig) else StyleGAN2Discriminator(config)


class PatchGAN(nn.Module):
    """Strided convolutions of size 4, then one score a position."""

    def __init__(self, config: PatchGANConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * min(2**i, 8) for i in range(config.layers + 1)]
        stages: list[nn.Module] = [nn.Conv2d(3, config.channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, config.layers + 1):
            stages += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride=2 if i < config.layers else 1, padding=1, bias=False),
                nn.BatchNorm2d(widths[i]),
                nn.LeakyReLU(0.2),
            ]
        self.stages = nn.Sequential(*stages, nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1))
        self.apply(_init_patchgan)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, 1, h, w]
        self.config.check_image_size(min(images.shape[-2:]))
        return self.stages(images)


class StyleGAN2Discriminator(nn.Module):
    """Halves the map down to 4 x 4, then decides."""

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        equalized = config.equalized_lr
        sizes = [2**i for i in range(int(math.log2(config.image_size)), 2, -1)]  # image_size, ..., 8
        self.input = ScaledConv(3, config.channels(config.image_size), 3, equalized=equalized)
        blocks = [DiscriminatorBlock(config.channels(size), config.channels(size // 2), equalized) for size in sizes]
        self.blocks = nn.Sequential(*blocks)
        last = config.channels(4)
        self.conv = ScaledConv(last + bool(config.minibatch_stddev), last, 3, equalized=equalized)
        # linear layers as convolutions: one over the whole map, one over its only position
        self.hidden = ScaledConv(last, last, 4, padding=0, equalized=equalized)
        self.output = ScaledConv(last, 1, 1, gain=1.0, equalized=equalized)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, 1]
        for side in images.shape[-2:]:
            self.config.check_image_size(side)
        x = self.blocks(_active(self.input(images)))  # [B, C, 4, 4]
        if self.config.minibatch_stddev:
            x = torch.cat([x, minibatch_stddev(x, self.config.minibatch_stddev)], dim=1)  # [B, C+1, 4, 4]
        x = _active(self.hidden(_active(self.conv(x))))  # [B, C, 1, 1]
        return self.output(x).flatten(1)  # [B, 1]


class DiscriminatorBlock(nn.Module):
    """Two 3x3 convolutions, the map blurred and halved between them, beside the same with a 1x1 convolution."""

    def __init__(self, channels: int, out_channels: int, equalized: bool) -> None:
        super().__init__()
        self.conv1 = ScaledConv(channels, channels, 3, equalized=equalized)
        self.conv2 = ScaledConv(channels, out_channels, 3, equalized=equalized)
        self.shortcut = ScaledConv(channels, out_channels, 1, gain=1.0, bias=False, equalized=equalized)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, C', h/2, w/2]
        h = _active(self.conv2(blur_and_halve(_active(self.conv1(x)))))
        return (h + self.shortcut(blur_and_halve(x))) / math.sqrt(2)  # [B, C', h/2, w/2]


class ScaledConv(nn.Conv2d):
    """Convolution of weights N(0, gain^2 / inputs): drawn so, or, equalized, scaled so in every pass."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        size: int,
        *,
        gain: float = math.sqrt(2),  # keeps the variance of what a leaky ReLU follows
        padding: int | None = None,
        bias: bool = True,
        equalized: bool,
    ) -> None:
        super().__init__(channels, out_channels, size, padding=size // 2 if padding is None else padding, bias=bias)
        std = gain / math.sqrt(channels * size**2)
        self.scale = std if equalized else 1.0
        nn.init.normal_(self.weight, 0.0, 1.0 if equalized else std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, C', h', w']
        weight = self.weight if self.scale == 1.0 else self.weight * self.scale
        return F.conv2d(x, weight, self.bias, padding=self.padding)


def blur_and_halve(x: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, C, h/2, w/2]
    """Every second position of the map, weighted 1, 2, 1 with its neighbours along either axis."""
    channels = x.shape[1]
    tap = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    kernel = torch.outer(tap, tap).expand(channels, 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 0, 1, 0), mode="reflect"), kernel, stride=2, groups=channels)


def minibatch_stddev(x: torch.Tensor, group: int) -> torch.Tensor:  # [B, C, h, w] -> [B, 1, h, w]
    """Standard deviation over M images, averaged over channels and positions: the same number for all of a group."""
    batch, _, height, width = x.shape
    group = min(group, batch)
    if batch % group:
        raise ValueError(f"images: expected a multiple of minibatch_stddev={group}, got {batch}")
    variance = at_least_float32(x).unflatten(0, (group, -1)).var(dim=0, unbiased=False)  # [B/M, C, h, w]
    deviation = (variance + 1e-8).sqrt().mean(dim=(1, 2, 3))  # [B/M]
    return deviation.to(x.dtype).repeat(group)[:, None, None, None].expand(-1, 1, height, width)


def _active(x: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(x, 0.2)


def _init_patchgan(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
