"""UNet of latent diffusion models: diffusers' ``UNet2DConditionModel``, a class as its one token of context.

B batch, C latent channels, h w latent grid, E context width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from models.config_json import Hidden


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """UNet of LDM; the defaults are VQGAN-LC's at 16 x 16."""

    kind: Hidden[Literal["unet"]] = "unet"
    base_channels: int = 256  # channels at full resolution, a multiple of the groups
    norm_groups: int = 32  # of the normalisations; a group of one channel loses its mean, the colour of a picture
    multipliers: tuple[int, ...] = (1, 4)  # channel factor of each level
    res_blocks: int = 3  # residual blocks per level
    attention_levels: tuple[int, ...] = (0,)  # levels with attention, to the context too; the middle always has it
    head_dim: int = 32  # channels of an attention head
    context_dim: int = 512  # width of the embedding of a class

    def __post_init__(self) -> None:
        if self.norm_groups < 1:
            raise ValueError(f"norm_groups: expected at least 1, got {self.norm_groups}")
        if self.base_channels < self.norm_groups or self.base_channels % self.norm_groups:
            raise ValueError(f"base_channels: expected a multiple of {self.norm_groups}, got {self.base_channels}")
        if self.base_channels % self.head_dim:
            raise ValueError(f"head_dim: expected a divisor of {self.base_channels} channels, got {self.head_dim}")
        levels = len(self.multipliers)
        if not self.multipliers or any(not 0 <= level < levels for level in self.attention_levels):
            raise ValueError(f"attention_levels: expected levels below {levels}, got {self.attention_levels}")
        if self.res_blocks < 1:
            raise ValueError(f"res_blocks: expected at least 1, got {self.res_blocks}")


def ldm_f16() -> UNetConfig:
    """VQGAN-LC's LDM on 8 x 16 x 16 latents."""
    return UNetConfig()


def ldm_f8() -> UNetConfig:
    """VQGAN-LC's LDM on 4 x 32 x 32 latents; where it attends is not published, so at 16 x 16, as for f16."""
    return UNetConfig(multipliers=(1, 2, 4), res_blocks=2, attention_levels=(1,))


def ldm_pocket() -> UNetConfig:
    """The same structure at a size that two cores train: 0.8 M parameters."""
    return UNetConfig(base_channels=32, norm_groups=4, multipliers=(1, 2), res_blocks=1, context_dim=64)


class LDMUNet(nn.Module):
    """Latent, time and class to the noise in the latent; label ``num_classes`` means "no class"."""

    def __init__(self, config: UNetConfig, *, channels: int, grid: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        # diffusers takes a second to import, and most programs here have no UNet
        from diffusers import UNet2DConditionModel

        halvings = len(config.multipliers) - 1
        if any(side % 2**halvings for side in grid):
            raise ValueError(f"grid: expected sides that {2**halvings} divides, got {grid}")
        self.channels, self.num_classes, self.out_channels = channels, num_classes, channels
        widths = [config.base_channels * factor for factor in config.multipliers]
        attends = [level in config.attention_levels for level in range(len(widths))]
        self.label = nn.Embedding(num_classes + 1, config.context_dim)
        self.unet = UNet2DConditionModel(
            sample_size=grid,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=widths,
            layers_per_block=config.res_blocks,
            down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
            up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
            # diffusers calls the number of heads by the name of their width
            attention_head_dim=[width // config.head_dim for width in widths],
            cross_attention_dim=config.context_dim,
            norm_num_groups=config.norm_groups,
        )

    @property
    def gradient_checkpointing(self) -> bool:
        return bool(self.unet.is_gradient_checkpointing)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        if value:
            self.unet.enable_gradient_checkpointing()
        else:
            self.unet.disable_gradient_checkpointing()

    def forward(
        self,
        latent: torch.Tensor,  # [B, C, h, w]
        time: torch.Tensor,  # [B]
        labels: torch.Tensor | None = None,  # [B]
    ) -> torch.Tensor:  # [B, C, h, w]
        if (labels is None) != (self.num_classes == 0):
            wanted = "one class per latent" if labels is None else "none from an unconditional network"
            raise ValueError(f"labels: expected {wanted}, got {'none' if labels is None else tuple(labels.shape)}")
        if labels is None:
            labels = torch.zeros(len(latent), dtype=torch.int64, device=latent.device)
        context = self.label(labels).unsqueeze(1)  # [B, 1, E]
        noise: torch.Tensor = self.unet(latent, time, encoder_hidden_states=context).sample
        return noise
