"""Which vectors take part, and means over them."""

from __future__ import annotations

import torch

from vqkernels._core.checks import check_mask, check_same_device
from vqkernels._core.devices import widest
from vqkernels._core.usable import usable_rows


def masked_mean_square(
    a: torch.Tensor,  # [N, G, D]
    b: torch.Tensor,  # [N, G, D]
    usable: torch.Tensor,  # [N] or [N, G]
) -> torch.Tensor:  # []
    """Mean squared difference over the entries of usable vectors; 0 if there are none."""
    usable = (usable if usable.dim() == 2 else usable[:, None]).expand(a.shape[:2])
    error = (a - b).square().sum(dim=2)
    # float32 holds the error of any vector, and the mean, but not always the sum
    total = (error * usable).sum(dtype=widest(error.device))
    return (total / (usable.sum().clamp(min=1) * a.shape[2])).to(error.dtype)


def mean_or_zero(values: torch.Tensor) -> torch.Tensor:  # [...] -> []
    """The mean, and 0 of nothing."""
    return values.mean() if values.numel() else values.sum()


def without_unusable(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # [..., D] -> the same, [...] bool
    """Zeros in place of the vectors that take no part, and which vectors do.

    To be called before anything is computed from them, so that no backward multiplies a NaN by zero.
    """
    usable = usable_rows(x)
    return torch.where(usable[..., None], x, 0), usable


def kept_rows(usable: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:  # [...] bool, [...] -> [...] bool
    """Those of the usable vectors that the mask keeps."""
    if mask is None:
        return usable
    check_mask("mask", mask, tuple(usable.shape), "x without its vector dimension")
    check_same_device(x=usable, mask=mask)
    return usable & mask


def label(
    indices: torch.Tensor,  # [N, G]
    usable: torch.Tensor,  # [N]
    mask: torch.Tensor | None,  # [...]
) -> torch.Tensor:  # [N, G]
    """Index 0 where the vector is not usable, -1 where it is masked."""
    indices = torch.where(usable[:, None], indices, 0)
    return indices if mask is None else torch.where(mask.reshape(-1, 1), indices, -1)
