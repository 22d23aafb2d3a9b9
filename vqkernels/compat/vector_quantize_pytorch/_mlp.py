"""Codes that a network makes, one for each vector (QINCo, Huijben et al. 2024)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from vqkernels._core.arguments import Size, Times, checked


class MLP(nn.Module):
    """Codes made from base codes and what has been quantized so far (QINCo, Huijben et al. 2024)."""

    @checked
    def __init__(
        self, dim: Size, dim_hidden: Size | None = None, depth: Times = 4, l2norm_output: bool = False
    ) -> None:
        super().__init__()
        hidden = dim if dim_hidden is None else dim_hidden
        self.proj_in = nn.Linear(2 * dim, dim)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim)) for _ in range(depth)
        )
        self.l2norm_output = l2norm_output

    def forward(self, codes: torch.Tensor, *, condition: torch.Tensor) -> torch.Tensor:
        """All codes for every token: ``[..., K, D], [B, ..., D] -> [..., B, N, K, D]``."""
        condition = condition.reshape(condition.shape[0], -1, condition.shape[-1])
        return self.mix(codes[..., None, None, :, :], condition[:, :, None])

    def mix(self, codes: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """One code for one condition; both ``[..., D]``, broadcast."""
        weight = self.proj_in.weight
        codes, condition = codes.to(weight.dtype), condition.to(weight.dtype)
        of_condition, of_codes = weight.chunk(2, dim=1)
        # the halves of the layer apart: neither argument is copied for every value of the other
        x = F.linear(condition, of_condition, self.proj_in.bias) + F.linear(codes, of_codes)
        for layer in self.layers:
            x = layer(x) + x
        return F.normalize(x, dim=-1) if self.l2norm_output else x
