"""Classifier-free guidance: the network runs with the class and without, and the difference is stretched.

B samples, N rows of the network: B, or 2B with guidance, those with the class, then those without.
"""

from __future__ import annotations

import math

import torch


class Guidance:
    """What the rows of a network see of a batch of samples, and what becomes of what they say.

    Args:
        scale: s of u + s(c - u), c with the class and u without; 1 is the class alone, and no second row.
        labels: classes of the samples [B], ``num_classes`` for none; no tensor for an unconditional prior.
        samples: B.
        num_classes: of the prior.
    """

    def __init__(self, scale: float, labels: torch.Tensor | None, samples: int, num_classes: int) -> None:
        if (labels is None) != (num_classes == 0):
            wanted = f"one class for each of {samples} samples" if num_classes else "none for an unconditional prior"
            raise ValueError(f"labels: expected {wanted}, got {'none' if labels is None else tuple(labels.shape)}")
        self.scale, self.labels, self.doubled = scale, labels, scale != 1
        if labels is None:
            if self.doubled:
                raise ValueError(f"guidance: expected 1 from an unconditional prior, got {scale}")
            return
        if labels.shape != (samples,):
            raise ValueError(f"labels: expected [{samples}], one per sample, got {tuple(labels.shape)}")
        outside = labels[(labels < 0) | (labels > num_classes)]
        if len(outside):
            expected = f"classes from 0 to {num_classes - 1}, or {num_classes} for none"
            raise ValueError(f"labels: expected {expected}, got {int(outside[0])}")
        if self.doubled:
            self.labels = torch.cat([labels, torch.full_like(labels, num_classes)])  # [N]

    def rows(self, x: torch.Tensor) -> torch.Tensor:  # [B, ...] -> [N, ...]
        return torch.cat([x, x]) if self.doubled else x

    def __call__(
        self,
        output: torch.Tensor,  # [N, C, ...]
        *,
        scale: float | None = None,
        channels: int | None = None,
    ) -> torch.Tensor:  # [B, C, ...]
        """One row per sample. ``scale`` in place of the usual one; channels from ``channels`` on are not guided."""
        if not self.doubled:
            return output
        with_class, without = output.chunk(2)
        end = output.shape[1] if channels is None else channels
        steered = without[:, :end] + (self.scale if scale is None else scale) * (with_class - without)[:, :end]
        return torch.cat([steered, with_class[:, end:]], dim=1)


def check_guidance(scale: float) -> None:
    """Raise unless ``scale`` is one that means something."""
    if not 0 <= scale < math.inf:
        raise ValueError(f"guidance: expected at least 0, got {scale}")
