"""What SGC-VQGAN's decoder sees of a code: all levels, their sum, some of them, or one kind attending to the other.

The D channels of a code are L equal slices, the most semantic one first. Levels whose weight reaches sigma are high,
the others low. B batch, h w grid, N = h w positions, A channels of the attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class AggregatorConfig:
    """The step from quantized vectors to the decoder."""

    mode: Literal["concat", "add", "lowest", "highest", "cross_attention"] = "concat"  # what the decoder sees
    attention_width: int = 32  # channels of the attention in "cross_attention"

    def __post_init__(self) -> None:
        if self.attention_width < 1:
            raise ValueError(f"attention_width: expected at least 1, got {self.attention_width}")


class Aggregator(nn.Module):
    """Quantized vectors of all levels to ``width`` channels for the decoder; only attention has weights."""

    def __init__(
        self,
        config: AggregatorConfig,
        dim: int,
        weights: Sequence[float],  # [L], falling
        sigma: float,
    ) -> None:
        super().__init__()
        levels = len(weights)
        if levels < 1 or dim % levels:
            raise ValueError(f"weights: expected one for each of the levels that divide {dim} channels, got {levels}")
        self.mode, self.weights = config.mode, tuple(weights)
        high = sum(weight >= sigma for weight in weights) * dim // levels
        if list(weights) != sorted(weights, reverse=True):
            raise ValueError(f"weights: expected them falling from level to level, got {self.weights}")
        if config.mode in ("highest", "cross_attention") and high == 0:
            raise ValueError(f"sigma: expected at most {max(weights)}, so that a level is high, got {sigma}")
        if config.mode in ("lowest", "cross_attention") and high == dim:
            raise ValueError(f"sigma: expected more than {min(weights)}, so that a level is low, got {sigma}")
        self.split = [high, dim - high]  # channels of the high and of the low levels
        widths = {"concat": dim, "add": dim // levels, "lowest": dim - high, "highest": high}
        self.width = widths.get(config.mode, dim - high)
        if config.mode == "cross_attention":
            self.query = nn.Conv2d(dim - high, config.attention_width, 1)
            self.key = nn.Conv2d(high, config.attention_width, 1)
            self.value = nn.Conv2d(high, config.attention_width, 1)
            self.output = nn.Conv2d(config.attention_width, dim - high, 1)

    def forward(self, quantized: torch.Tensor) -> torch.Tensor:  # [B, D, h, w] -> [B, width, h, w]
        if self.mode == "concat":
            return quantized
        if self.mode == "add":
            slices = quantized.chunk(len(self.weights), dim=1)  # L of [B, D/L, h, w]
            return torch.stack([weight * part for weight, part in zip(self.weights, slices, strict=True)]).sum(dim=0)
        high, low = quantized.split(self.split, dim=1)
        if self.mode == "highest":
            return high
        if self.mode == "lowest":
            return low
        query, key, value = self.query(low), self.key(high), self.value(high)  # [B, A, h, w]
        h = F.scaled_dot_product_attention(*(part.flatten(2).mT for part in (query, key, value)))  # [B, N, A]
        # without the residual a position would keep of its low levels only where it looks
        return low + self.output(h.mT.reshape(query.shape))
