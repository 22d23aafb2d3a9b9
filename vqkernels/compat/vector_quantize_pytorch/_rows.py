"""Inputs of any layout as rows that a lookup takes, and what comes out of it in the layout of the input."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vqkernels._core.checks import check_numbers, check_same_device, check_shape
from vqkernels._core.shown import shape_of


class Rows(NamedTuple):
    """The parts of all vectors that are looked up: H of each for H codebooks, or all heads below one another."""

    x: torch.Tensor  # [N, H, D] float32; zero where not usable
    usable: torch.Tensor  # [N, H] bool, finite and not masked
    shape: torch.Size  # of the indices, without heads

    @property
    def taking_part(self) -> torch.Tensor:  # [N, H] int64, -1 = left out
        return torch.where(self.usable, 0, -1)

    def select(self, indices: torch.Tensor) -> torch.Tensor:  # [N, H]
        """Indices, and -1 for rows that are left out."""
        return torch.where(self.usable, indices, -1)


def lens_to_mask(
    lens: torch.Tensor,  # [B]
    x: torch.Tensor,  # [B, ...]
    axis: int,
) -> torch.Tensor:  # [B, x.shape[axis]]
    """Which places along a dimension of ``x`` are within the lengths."""
    check_numbers("lens", lens)
    check_shape("lens", lens, tuple(x.shape[:1]), "[B]")
    check_same_device(x=x, lens=lens)
    if x.dim() != 3:
        raise ValueError(f"lens: expected None but for x of 3 dimensions, got shape {shape_of(x)}")
    max_length = x.shape[axis]
    return torch.arange(max_length, device=lens.device) < lens[:, None]


def directional_reparam(
    src: torch.Tensor,  # [..., D]
    tgt: torch.Tensor,  # [..., D]
    noise_variance: float = 5e-3,
) -> torch.Tensor:
    """``src`` moved by its distance to ``tgt``, nearly in that direction (DiVeQ); both learn from the distance."""
    error = tgt - src
    noisy = error.detach() + noise_variance**0.5 * torch.randn_like(error)
    square = error.square().sum(dim=-1, keepdim=True)
    # the gradient of a distance of zero is zero
    distance = square.where(square > 0, 1).sqrt() * (square > 0)
    return src + torch.nn.functional.normalize(noisy, dim=-1, eps=1e-6) * distance


def orthogonal_loss_fn(codes: torch.Tensor) -> torch.Tensor:  # [H, K, D] -> []
    """``|C C^T - I|^2 / (H K^2)`` of codes scaled to unit length, through ``C^T C``, of D x D instead of K x K."""
    heads, k, _ = codes.shape
    unit = torch.nn.functional.normalize(codes, dim=-1, eps=1e-6)
    gram = unit.transpose(1, 2) @ unit
    return (gram.square().sum() - 2 * unit.square().sum() + heads * k) / max(1, heads * k**2)
