"""The small network that draws one continuous token: from a noised token, a time and a condition to a velocity.

Residual blocks with adaptive layer norms of the time alone; the condition, a vector of the transformer, is
concatenated in every block (SEMANTICIST's epsilon-LlamaGen).
N tokens, D token dimension, C condition width, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from models.config_json import Hidden
from models.networks.checkpointing import run_block
from models.networks.dit import TimestepEmbedder, linear, zero_linear


@dataclass(frozen=True, kw_only=True)
class FlowHeadConfig:
    """MLP that turns noise into a token; the defaults are SEMANTICIST's."""

    kind: Hidden[Literal["flow_head"]] = "flow_head"
    layers: int = 12  # residual blocks
    width: int = 1536  # channels inside

    def __post_init__(self) -> None:
        for name in ("layers", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


class FlowBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), zero_linear(width, 3 * width))
        self.mlp = nn.Sequential(linear(2 * width, width), nn.SiLU(), linear(width, width))

    def forward(
        self,
        x: torch.Tensor,  # [N, W]
        time: torch.Tensor,  # [N, W]
        condition: torch.Tensor,  # [N, W]
    ) -> torch.Tensor:  # [N, W]
        shift, scale, gate = self.modulation(time).chunk(3, dim=1)  # [N, W] each
        h = self.norm(x) * (1 + scale) + shift
        return x + gate * self.mlp(torch.cat([h, condition], dim=1))


class FlowHead(nn.Module):
    """Velocity of noised tokens; zero at the start."""

    def __init__(self, config: FlowHeadConfig, *, token_dim: int, condition_dim: int) -> None:
        super().__init__()
        width = config.width
        self.gradient_checkpointing = False
        self.input = linear(token_dim, width)
        self.condition = linear(condition_dim, width)
        self.time = TimestepEmbedder(width)
        self.blocks = nn.ModuleList([FlowBlock(width) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), zero_linear(width, 2 * width))
        self.output = zero_linear(2 * width, token_dim)

    def forward(
        self,
        tokens: torch.Tensor,  # [N, D]
        time: torch.Tensor,  # [N], 0 noise, 1 data
        condition: torch.Tensor,  # [N, C]
    ) -> torch.Tensor:  # [N, D]
        x = self.input(tokens)  # [N, W]
        embedded, condition = self.time(time), self.condition(condition)  # [N, W] each
        for block in self.blocks:
            x = run_block(block, x, embedded, condition, checkpointing=self.gradient_checkpointing)
        shift, scale = self.modulation(embedded).chunk(2, dim=1)
        x = self.norm(x) * (1 + scale) + shift
        return self.output(torch.cat([x, condition], dim=1))
