"""From the indices of codes to the vectors a transformer reads.

B batch, S positions, K codes, G groups, D code dimension, W width.
"""

from __future__ import annotations

import torch
from torch import nn


class CodeEmbedding(nn.Module):
    """Indices to vectors by a table; the vectors of the groups of a position are added."""

    def __init__(self, rows: int, groups: int, width: int) -> None:
        super().__init__()
        self.rows, self.groups = rows, groups
        self.table = nn.Embedding(rows * groups, width)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:  # [B, S] or [B, S, G] -> [B, S, W]
        if self.groups == 1:
            return self.table(codes)
        return self.table(codes + self.rows * torch.arange(self.groups, device=codes.device)).sum(2)


class CodeTable(nn.Module):
    """Indices to the tokenizer's own vectors, those of the groups side by side.

    The vectors are the tokenizer's: they are set once by :meth:`set_codes`, kept in the state dict and not trained.
    """

    def __init__(self, num_codes: int, groups: int, code_dim: int) -> None:
        super().__init__()
        self.codes: torch.Tensor  # [G, K, D/G]
        self.register_buffer("codes", torch.full((groups, num_codes, code_dim // groups), torch.nan))
        self._set = False

    def set_codes(self, codes: torch.Tensor) -> None:  # [G, K, D/G]
        if codes.shape != self.codes.shape:
            raise ValueError(f"codes: expected {tuple(self.codes.shape)}, got {tuple(codes.shape)}")
        self.codes.copy_(codes)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:  # [..., S] or [..., S, G] -> [..., S, D]
        if not self._set:  # or loaded, or copied: looked at once
            if self.codes.isnan().any():
                raise ValueError("codes: expected the tokenizer's codes before the first batch, got none")
            self._set = True
        groups = len(self.codes)
        indices = codes if groups > 1 else codes.unsqueeze(-1)  # [..., S, G]
        return self.codes[torch.arange(groups, device=codes.device), indices].flatten(-2)


class CodeVectors(CodeTable):
    """The same, then a small MLP (MGVQ)."""

    def __init__(self, num_codes: int, groups: int, code_dim: int, width: int) -> None:
        super().__init__(num_codes, groups, code_dim)
        self.mlp = nn.Sequential(
            nn.Linear(code_dim, width // 2, bias=False),
            nn.GELU(),
            nn.Linear(width // 2, width, bias=False),
            nn.LayerNorm(width),
        )

    def forward(self, codes: torch.Tensor) -> torch.Tensor:  # [B, S] or [B, S, G] -> [B, S, W]
        return self.mlp(super().forward(codes))
