"""Which codes are in use: statistics in O(K), kept in the state, read without scanning any index."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn


class Usage(NamedTuple):
    """Result of :meth:`vqkernels.VectorQuantizer.usage`: 0-dim tensors; reading one is what synchronises."""

    utilization: torch.Tensor  # share of the codes used within the window, in [0, 1]
    perplexity: torch.Tensor  # exp of the entropy of the running frequency, mean over groups, in [1, K]
    dead_codes: torch.Tensor  # int64, number of codes not used within the window, over all groups


class UsageStatistics(nn.Module):
    """Running frequency and time of last use of each code, over training steps that saw any vector."""

    frequency: torch.Tensor  # [G, K] float32
    last_used: torch.Tensor  # [G, K] int64, 0 = never
    step: torch.Tensor  # [] int64

    def __init__(self, groups: int, num_codes: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.register_buffer("frequency", torch.zeros(groups, num_codes))
        self.register_buffer("last_used", torch.zeros(groups, num_codes, dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, count: torch.Tensor) -> None:  # [G, K]
        """Fold in how often each code was used this step."""
        seen = count.sum(dim=1, keepdim=True)
        share = torch.lerp(self.frequency, (count / seen.clamp(min=1)).to(self.frequency), 1 / self.window)
        self.frequency.copy_(torch.where(seen > 0, share, self.frequency))
        self.step.add_((seen > 0).any())
        self.last_used.copy_(torch.where(count > 0, self.step, self.last_used))

    @torch.no_grad()
    def summary(self) -> Usage:
        alive = self.last_used > (self.step - self.window).clamp(min=0)
        frequency = self.frequency.to(torch.promote_types(self.frequency.dtype, torch.float32))
        share = frequency / frequency.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        entropy = -torch.special.xlogy(share, share).sum(dim=1)
        return Usage(alive.float().mean(), entropy.exp().mean(), (~alive).sum())

    def extra_repr(self) -> str:
        return f"window={self.window}"
