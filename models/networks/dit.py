"""DiT and SiT: a transformer over patches of a latent, steered by time and class through adaptive layer norms.

Blocks are "adaLN-zero": one embedding of time and class, shared by all of them, gives each its shifts, scales and
gates, and every gate starts at zero, so that a block starts as the identity. Positions are fixed sines and cosines.
The two networks are one; they differ in what the output means (noise and its variance, or a velocity).
B batch, C latent channels, h w latent grid, p patch side, L = hw/pp patches, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from models.config_json import Hidden
from models.networks.checkpointing import run_block


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Transformer of DiT and SiT; the defaults are XL/2."""

    kind: Hidden[Literal["dit"]] = "dit"
    layers: int = 28  # blocks
    width: int = 1152  # channels inside the transformer
    heads: int = 16  # attention heads
    patch_size: int = 2  # latent cells per side of a patch
    mlp_ratio: float = 4.0  # hidden width of a block's MLP over its width
    learned_sigma: bool = True  # twice the output channels: the second half is the variance (SiT leaves it unused)

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.width < 4 or self.width % 4 or self.width % self.heads:
            expected = f"a multiple of 4 and of {self.heads} heads"
            raise ValueError(f"width: expected {expected}, got {self.width}")


def dit_b() -> DiTConfig:
    """DiT-B/2 and SiT-B/2: 130 M parameters on 32 x 32 x 4 latents."""
    return DiTConfig(layers=12, width=768, heads=12)


def dit_l() -> DiTConfig:
    """DiT-L/2 and SiT-L/2: 458 M."""
    return DiTConfig(layers=24, width=1024, heads=16)


def dit_xl() -> DiTConfig:
    """DiT-XL/2 and SiT-XL/2: 675 M."""
    return DiTConfig()


def sincos_2d(width: int, height: int, columns: int) -> torch.Tensor:  # [height * columns, width]
    """Fixed positions of a grid in raster order: the column in the first half of the channels, the row in the second.

    A half holds the sines, then the cosines, of the coordinate times 10000^(-i / (width/4)).
    """
    if width % 4:
        raise ValueError(f"width: expected a multiple of 4, got {width}")
    frequencies = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))  # [W/4]
    row, column = torch.meshgrid(torch.arange(height), torch.arange(columns), indexing="ij")
    angles = [where.reshape(-1, 1) * frequencies for where in (column, row)]  # 2 x [hw, W/4]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1).float()


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer as DiT starts it: Xavier-uniform weights, no bias yet."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer whose output starts at zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``x`` [B, L, W] shifted and scaled by one vector [B, W] per image."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class TimestepEmbedder(nn.Module):
    """A time per sample as a vector: sines and cosines, then a two-layer MLP. Times may be fractions."""

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(linear(frequencies, width), nn.SiLU(), linear(width, width))
        nn.init.normal_(self.mlp[0].weight, std=0.02)
        nn.init.normal_(self.mlp[2].weight, std=0.02)

    def forward(self, time: torch.Tensor) -> torch.Tensor:  # [B] -> [B, W]
        half = self.frequencies // 2
        weight = self.mlp[0].weight
        # in float32 at least: half precision cannot tell 999 steps apart
        exact = torch.promote_types(weight.dtype, torch.float32)
        rates = torch.exp(-math.log(10000) / half * torch.arange(half, device=time.device, dtype=exact))
        angles = time[:, None].to(exact) * rates  # [B, F/2]
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1).to(weight.dtype))


class ClassEmbedder(nn.Module):
    """A class as a vector; the row after the last class is "no class", for guidance."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_classes + 1, width)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, labels: torch.Tensor) -> torch.Tensor:  # [B] -> [B, W]
        return self.table(labels)


class Attention(nn.Module):
    """Every position attends to every position."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(width, 3 * width)
        self.output = linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, L, W] -> [B, L, W]
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, L, W/heads] each
        x = F.scaled_dot_product_attention(q, k, v)  # [B, heads, L, W/heads]
        return self.output(x.transpose(1, 2).flatten(2))  # [B, L, W]


class DiTBlock(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition; the identity at the start."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(linear(width, hidden), nn.GELU(approximate="tanh"), linear(hidden, width))
        self.modulation = nn.Sequential(nn.SiLU(), zero_linear(width, 6 * width))

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:  # [B, L, W], [B, W] -> [B, L, W]
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=1)  # [B, W] each
        x = x + gate1.unsqueeze(1) * self.attention(modulate(self.norm1(x), shift1, scale1))
        return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """Modulated norm and a projection to pixels of patches; zero at the start."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), zero_linear(width, 2 * width))
        self.output = zero_linear(width, outputs)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:  # [B, L, W], [B, W] -> [B, L, O]
        shift, scale = self.modulation(condition).chunk(2, dim=1)  # [B, W] each
        return self.output(modulate(self.norm(x), shift, scale))


class DiT(nn.Module):
    """Latent, time and class to the noise in the latent and, with ``learned_sigma``, its variance.

    ``num_classes`` = 0 builds an unconditional network. Label ``num_classes`` means "no class".
    """

    def __init__(self, config: DiTConfig, *, channels: int, grid: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        patch = config.patch_size
        if channels < 1 or min(grid) < 1 or grid[0] % patch or grid[1] % patch:
            raise ValueError(
                f"grid: expected sides that patches of {patch} divide, got {grid} with {channels} channels"
            )
        self.channels, self.num_classes, self.patch = channels, num_classes, patch
        self.rows, self.columns = grid[0] // patch, grid[1] // patch
        self.out_channels = channels * (2 if config.learned_sigma else 1)
        self.gradient_checkpointing = False
        self.embed = linear(channels * patch**2, config.width)  # of a patch, in the order (C, p, p)
        self.time = TimestepEmbedder(config.width)
        self.label = ClassEmbedder(num_classes, config.width) if num_classes else None
        blocks = [DiTBlock(config.width, config.heads, config.mlp_ratio) for _ in range(config.layers)]
        self.blocks = nn.ModuleList(blocks)
        self.final = FinalLayer(config.width, patch**2 * self.out_channels)  # in the order (p, p, C), as published
        self.positions: torch.Tensor  # [L, W]
        self.register_buffer("positions", sincos_2d(config.width, self.rows, self.columns), persistent=False)

    def forward(
        self,
        latent: torch.Tensor,  # [B, C, h, w]
        time: torch.Tensor,  # [B]
        labels: torch.Tensor | None = None,  # [B]
    ) -> torch.Tensor:  # [B, C or 2C, h, w]
        x = self.from_latent(latent)  # [B, L, W]
        if (labels is None) != (self.label is None):
            wanted = "none from an unconditional network" if self.label is None else "one class per latent"
            raise ValueError(f"labels: expected {wanted}, got {'none' if labels is None else tuple(labels.shape)}")
        condition = self.time(time)  # [B, W]
        if self.label is not None:
            condition = condition + self.label(labels)  # [B, W]
        for block in self.blocks:
            x = run_block(block, x, condition, checkpointing=self.gradient_checkpointing)
        return self.to_latent(x, condition)

    def from_latent(self, latent: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, L, W]
        """Patches embedded, each at its position."""
        expected = (self.channels, self.rows * self.patch, self.columns * self.patch)
        if latent.shape[1:] != expected:
            raise ValueError(f"latent: expected [B, {', '.join(map(str, expected))}], got {tuple(latent.shape)}")
        patches = F.unfold(latent, self.patch, stride=self.patch).mT  # [B, L, Cpp]
        return self.embed(patches) + self.positions

    def to_latent(
        self, x: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:  # [B, L, W], [B, W] -> [B, C, h, w]
        """What the last layer makes of the patches, put together."""
        x = self.final(x, condition)  # [B, L, ppC]
        x = x.unflatten(2, (self.patch, self.patch, self.out_channels))
        x = x.unflatten(1, (self.rows, self.columns))  # [B, h/p, w/p, p, p, C]
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class SiT(DiT):
    """The same network, its output read as a velocity; published weights carry the unused second half."""

    def forward(
        self,
        latent: torch.Tensor,  # [B, C, h, w]
        time: torch.Tensor,  # [B], 0 noise, 1 data
        labels: torch.Tensor | None = None,  # [B]
    ) -> torch.Tensor:  # [B, C, h, w]
        return super().forward(latent, time, labels)[:, : self.channels]
