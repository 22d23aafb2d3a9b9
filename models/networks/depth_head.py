"""Heads that predict the G indices of a position from one vector of a transformer.

"groups" (MGVQ): a small causal transformer over [vector, start, k_1, ..., k_(G-1)]; what comes out after the vector
predicts k_1, k_2, and so on. "residual" (RQ-Transformer): the same over [vector, e(k_1), e(k_1) + e(k_2), ...], one
token per level. "parallel", the baseline: G layers that know nothing of one another.
N positions of all samples, G groups or levels, K codes of each, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from models.config_json import Hidden
from models.networks.checkpointing import run_block
from models.networks.swiglu import SwiGLU


@dataclass(frozen=True, kw_only=True)
class DepthHeadConfig:
    """Head over the indices of one position."""

    kind: Hidden[Literal["depth_head"]] = "depth_head"
    structure: Literal["groups", "residual", "parallel"] = "groups"  # MGVQ, RQ-Transformer, or independent layers
    layers: int = 2  # causal blocks; "parallel" has none
    heads: int | None = None  # attention heads; None is one per group, as MGVQ has it

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"layers: expected at least 1, got {self.layers}")
        if self.heads is not None and self.heads < 1:
            raise ValueError(f"heads: expected at least 1, or none for one per group, got {self.heads}")


class CausalAttention(nn.Module):
    """Attention to earlier positions, queries and keys normalised."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_norm = nn.RMSNorm(width // heads, eps=1e-5)
        self.key_norm = nn.RMSNorm(width // heads, eps=1e-5)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, S, W] -> [N, S, W]
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [N, heads, S, W/heads] each
        # autocast may leave the norms in another type than the values
        q, k = self.query_norm(q).to(v.dtype), self.key_norm(k).to(v.dtype)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(x.transpose(1, 2).flatten(2))


class DepthBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=1e-5)
        self.attention = CausalAttention(width, heads)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-5)
        self.mlp = SwiGLU(width, 4 * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, S, W] -> [N, S, W]
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class DepthHead(nn.Module):
    """Vectors of positions to logits of G indices each; one table of codes and one output serve all groups.

    ("parallel" has an output per group, and no table.)
    """

    def __init__(self, config: DepthHeadConfig, *, width: int, num_codes: int, groups: int) -> None:
        super().__init__()
        heads = config.heads or groups
        if config.structure != "parallel" and width % heads:
            raise ValueError(f"width: expected a multiple of {heads} heads, got {width}")
        self.structure, self.num_codes, self.groups = config.structure, num_codes, groups
        self.gradient_checkpointing = False
        if config.structure == "parallel":
            self.output = nn.Linear(width, groups * num_codes, bias=False)
            nn.init.normal_(self.output.weight, std=0.02)
            return
        started = config.structure == "groups"
        self.start = nn.Parameter(torch.empty(width)) if started else None
        self.embed = nn.Embedding(num_codes, width)
        self.positions = nn.Parameter(torch.empty(groups + started, width))
        self.blocks = nn.ModuleList([DepthBlock(width, heads) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, num_codes, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        for table in (self.start, self.positions):
            if table is not None:
                nn.init.normal_(table, std=0.02)

    def forward(
        self,
        vectors: torch.Tensor,  # [N, W]
        codes: torch.Tensor,  # [N, g], the first g indices of each position, g < G
    ) -> torch.Tensor:  # [N, g + 1, W]
        """What :meth:`logits` turns into logits of the first g + 1 groups."""
        if self.structure == "parallel":
            return vectors.unsqueeze(1).expand(-1, codes.shape[1] + 1, -1)
        embedded = self.embed(codes)  # [N, g, W]
        tokens = [vectors.unsqueeze(1)]
        if self.start is not None:
            tokens += [self.start.expand(len(vectors), 1, -1), embedded]
        else:
            tokens.append(embedded.cumsum(1))
        x = torch.cat(tokens, dim=1)  # [N, g + 2 or g + 1, W]
        x = x + self.positions[: x.shape[1]]
        for block in self.blocks:
            x = run_block(block, x, checkpointing=self.gradient_checkpointing)
        return self.norm(x)[:, -(codes.shape[1] + 1) :]

    def output_weight(self, group: int) -> torch.Tensor:  # [K, W]
        """Weight of the layer from the features of ``group`` to its logits."""
        if self.structure != "parallel":
            return self.output.weight
        return self.output.weight.unflatten(0, (self.groups, self.num_codes))[group]

    def next_logits(
        self,
        vectors: torch.Tensor,  # [N, W]
        codes: torch.Tensor,  # [N, g]
    ) -> torch.Tensor:  # [N, K], of group g
        """Logits of the index that follows the first g of a position."""
        features = self(vectors, codes)[:, -1]  # [N, W]
        return F.linear(features, self.output_weight(codes.shape[1]))
