"""What a diffusion decoder works in: latents of a frozen autoencoder, or numbers of pixel patches.

B batch, H W pixels, h w grid, C latent channels, P patch side, F = 3PP values of a patch, N patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from models.config_json import Hidden
from models.errors import UserError
from models.networks.precision import float32
from models.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class PatchSpaceConfig:
    """Leading principal components of pixel patches: an autoencoder that needs no training.

    With as many channels as a patch has values nothing is lost, and decoding is exact.
    """

    kind: Hidden[Literal["patches"]] = "patches"
    patch_size: int = 8  # pixels per side of a patch
    channels: int = 24  # components kept of its 3 * patch_size^2 values
    whiten: bool = True  # each to unit variance; False divides all by the deviation of the first

    def __post_init__(self) -> None:
        if self.patch_size < 1:
            raise ValueError(f"patch_size: expected at least 1, got {self.patch_size}")
        if not 1 <= self.channels <= 3 * self.patch_size**2:
            raise ValueError(f"channels: expected 1 to {3 * self.patch_size**2}, got {self.channels}")


@dataclass(frozen=True, kw_only=True)
class AutoencoderSpaceConfig:
    """A frozen AutoencoderKL in the format of diffusers."""

    kind: Hidden[Literal["autoencoder_kl"]] = "autoencoder_kl"
    path: str  # folder, or name on the hub
    scale: float | None = None  # factor on its latents; None takes the one that its config names


@dataclass(frozen=True, kw_only=True)
class TokenizerSpaceConfig:
    """The frozen tokenizer of another run: its encoder's output; decoding goes through its quantizer."""

    kind: Hidden[Literal["tokenizer"]] = "tokenizer"
    run: str  # its folder
    scale: float = 1.0  # factor on its latents


SpaceConfig = PatchSpaceConfig | AutoencoderSpaceConfig | TokenizerSpaceConfig


class LatentSpace(nn.Module):
    """Images to latents and back, without gradients."""

    channels: int
    downsample: int  # pixels per side of one latent

    def encode(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, C, h, w]
        raise NotImplementedError

    def decode(self, latents: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, 3, H, W]
        raise NotImplementedError

    def grid(self, image_size: int) -> tuple[int, int]:
        """Latents per side of images of so many pixels."""
        if image_size % self.downsample:
            raise ValueError(f"image_size: expected a multiple of {self.downsample} pixels, got {image_size}")
        return image_size // self.downsample, image_size // self.downsample


class PatchSpace(LatentSpace):
    """See :class:`PatchSpaceConfig`; before :meth:`fit` the first values of each patch as they are."""

    def __init__(self, config: PatchSpaceConfig) -> None:
        super().__init__()
        self.channels, self.downsample, self.whiten = config.channels, config.patch_size, config.whiten
        values = 3 * config.patch_size**2
        self.mean: torch.Tensor
        self.register_buffer("mean", torch.zeros(values))
        self.directions: torch.Tensor  # [F, C]
        self.register_buffer("directions", torch.eye(values, config.channels))
        self.deviation: torch.Tensor  # [C]
        self.register_buffer("deviation", torch.ones(config.channels))

    def fit(self, patches: torch.Tensor) -> None:  # [N, 3, P, P]
        """Take mean, directions and deviations of these patches."""
        rows = patches.flatten(1).double()  # [N, F]
        if len(rows) <= rows.shape[1]:
            raise ValueError(f"patches: expected more than {rows.shape[1]}, got {len(rows)}")
        mean = rows.mean(dim=0)
        centred = rows - mean
        variance, direction = torch.linalg.eigh(centred.mT @ centred / len(rows))  # ascending [F], [F, F]
        leading = slice(-self.channels, None)
        self.mean.copy_(mean)
        self.directions.copy_(direction[:, leading].flip(1))
        deviation = variance[leading].flip(0).clamp(min=1e-8).sqrt()
        self.deviation.copy_(deviation if self.whiten else deviation[0])

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, C, h, w]
        with float32(images.device):
            patches = F.pixel_unshuffle(images, self.downsample).movedim(1, -1)  # [B, h, w, F]
            return ((patches - self.mean) @ self.directions / self.deviation).movedim(-1, 1)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, 3, H, W]
        with float32(latents.device):
            patches = latents.movedim(1, -1) * self.deviation @ self.directions.mT + self.mean  # [B, h, w, F]
            return F.pixel_shuffle(patches.movedim(-1, 1), self.downsample)


class AutoencoderSpace(LatentSpace):
    """See :class:`AutoencoderSpaceConfig`. In training latents are drawn from their distributions, else means."""

    def __init__(self, config: AutoencoderSpaceConfig) -> None:
        super().__init__()
        model = _load_autoencoder(config.path)
        self._outside = (model,)  # in a tuple: no part of what is trained and saved
        self.channels = int(model.config.latent_channels)
        self.downsample = 2 ** (len(model.config.block_out_channels) - 1)
        self.scale = float(model.config.scaling_factor) if config.scale is None else config.scale
        self.shift = float(model.config.shift_factor or 0.0)

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, C, h, w]
        model = self._outside[0].to(images.device)
        distribution = model.encode(images).latent_dist
        if not self.training:
            return (distribution.mean - self.shift) * self.scale
        drawn = distribution.mean + distribution.std * torch.randn_like(distribution.mean)
        return (drawn - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, 3, H, W]
        model = self._outside[0].to(latents.device)
        return model.decode(latents / self.scale + self.shift).sample


class TokenizerSpace(LatentSpace):
    """See :class:`TokenizerSpaceConfig`."""

    def __init__(self, tokenizer: Tokenizer, scale: float) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale: expected more than 0, got {scale}")
        self._outside = (tokenizer.requires_grad_(False).eval(),)
        self.scale, self.downsample, self.channels = scale, tokenizer.downsample, tokenizer.quantizer.dim

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, C, h, w]
        return self._outside[0].to(images.device).latents(images) * self.scale

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, 3, H, W]
        tokenizer = self._outside[0].to(latents.device)
        return tokenizer.decode(tokenizer.quantizer.encode(latents / self.scale)).float()


def _load_autoencoder(path: str) -> Any:
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise UserError("path: package diffusers is not installed; pip install diffusers") from error
    wanted = "path: expected an AutoencoderKL of diffusers, as a folder or a name on the hub"
    if not Path(path).is_dir() and (path.count("/") != 1 or path.startswith((".", "/"))):
        raise UserError(f"{wanted}, got {path}")  # not the name of something on the hub either
    try:
        model, report = AutoencoderKL.from_pretrained(path, output_loading_info=True, low_cpu_mem_usage=False)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{wanted}, got {path} ({reason})") from error
    # diffusers draws what it does not find at random, and only warns
    if report["missing_keys"]:
        raise UserError(f"path: {path} holds other weights (no {sorted(report['missing_keys'])[0]})")
    return model.requires_grad_(False).eval()
