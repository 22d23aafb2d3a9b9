"""The gated MLP of Llama-like transformers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class SwiGLU(nn.Module):
    """Two parallel layers, the SiLU of one gating the other, and a third layer back; no biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., W] -> [..., W]
        return self.down(F.silu(self.gate(x)) * self.up(x))
