"""What training hides from a prior: classes, and the truth of some input codes."""

from __future__ import annotations

import torch


def drop_labels(
    labels: torch.Tensor | None,  # [B]
    share: float,
    null: int,
    generator: torch.Generator | None = None,
) -> torch.Tensor | None:  # [B]
    """Each label becomes ``null`` with probability ``share``, so that the prior also learns what no class is like."""
    if labels is None or not share:
        return labels
    dropped = torch.rand(labels.shape, device=labels.device, generator=generator) < share
    return torch.where(dropped, null, labels)


def replace_codes(
    codes: torch.Tensor,
    share: float,
    num_codes: int,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Each index becomes a random one with probability ``share`` (pkeep of VQGAN is 1 - share)."""
    if not share:
        return codes
    chosen = torch.rand(codes.shape, device=codes.device, generator=generator) < share
    random = torch.randint(num_codes, codes.shape, device=codes.device, generator=generator)
    return torch.where(chosen, random, codes)


def check_share(name: str, share: float) -> None:
    """Raise unless ``share`` is a probability below one."""
    if not 0 <= share < 1:
        raise ValueError(f"{name}: expected a share in [0, 1), got {share}")


def flat_codes(codes: torch.Tensor, shape: tuple[int, ...], groups: int) -> torch.Tensor:
    """Codes [B, *shape] of samples as [B, L], or [B, L, G] with groups; raises on another shape."""
    if codes.shape[1:] != shape or codes.is_floating_point():
        got = f"{str(codes.dtype).removeprefix('torch.')} {tuple(codes.shape)}"
        raise ValueError(f"codes: expected integers [B, {', '.join(map(str, shape))}], got {got}")
    codes = codes.to(torch.int64)
    return codes.flatten(1, -2) if groups > 1 else codes.flatten(1)
