"""The definition of ``ema_update_`` in plain torch."""

from __future__ import annotations

import torch


def unsupported_reasons(*args: object) -> list[str]:
    return []


def run(
    codebook: torch.Tensor,  # [G, K, D]
    cluster_size: torch.Tensor,  # [G, K]
    embed_sum: torch.Tensor,  # [G, K, D]
    count: torch.Tensor,  # [G, K]
    total: torch.Tensor,  # [G, K, D]
    decay: float,
    eps: float,
    normalize: bool,
) -> None:
    size = decay * cluster_size + (1 - decay) * count
    moved = decay * embed_sum + (1 - decay) * total
    usable = size.isfinite() & moved.isfinite().all(dim=2)
    cluster_size.copy_(torch.where(usable, size, cluster_size))
    embed_sum.copy_(torch.where(usable[..., None], moved, embed_sum))
    if eps > 0:
        n = cluster_size.double().sum(dim=1, keepdim=True)
        smoothed = (cluster_size.double() + eps) / (n + codebook.shape[1] * eps) * n
        smoothed = smoothed.to(codebook.dtype)
    else:
        smoothed = cluster_size
    codes = embed_sum / smoothed[..., None]
    known = (smoothed > 0) & usable & codes.isfinite().all(dim=2)
    if normalize:
        norm = codes.double().norm(dim=2, keepdim=True).to(codes.dtype)
        codes = torch.where(norm > 0, codes / norm, codes)
    codebook.copy_(torch.where(known[..., None], codes, codebook))
