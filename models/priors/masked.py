"""Masked prior (MaskGIT): hidden codes predicted from the others, all at once.

B batch, h w grid, L codes of a sample, M masked codes of the batch, W width, K codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from models.config_json import Hidden
from models.losses.cross_entropy import linear_cross_entropy
from models.networks.code_shape import CodeShape
from models.networks.gpt import GPT, GPTConfig
from models.priors.corruption import check_share, drop_labels, flat_codes


@dataclass(frozen=True, kw_only=True)
class MaskedConfig:
    """Bidirectional transformer over partly hidden codes."""

    kind: Hidden[Literal["masked"]] = "masked"
    network: GPTConfig  # bidirectional
    class_dropout: float = 0.1  # classes hidden, for guidance
    label_smoothing: float = 0.1  # of the targets

    def __post_init__(self) -> None:
        check_share("class_dropout", self.class_dropout)
        check_share("label_smoothing", self.label_smoothing)
        if self.network.causal:
            raise ValueError("network.causal: expected False, got True")


class MaskedPrior(nn.Module):
    """The forward pass is the training loss: cosine of a uniform number as the share that is hidden."""

    def __init__(self, config: MaskedConfig, codes: CodeShape) -> None:
        super().__init__()
        if codes.groups > 1:
            raise ValueError(f"groups: expected 1, got {codes.groups}")
        self.config, self.codes = config, codes
        self.gpt = GPT(config.network, codes)

    def forward(
        self,
        codes: torch.Tensor,  # [B, h, w]
        labels: torch.Tensor | None = None,  # [B]
        generator: torch.Generator | None = None,
    ) -> dict[str, torch.Tensor]:
        """``loss`` to train on, and ``nll``, nats per hidden code."""
        config, shape = self.config, self.codes
        targets = flat_codes(codes, shape.shape, shape.groups)  # [B, L]
        if self.training:
            labels = drop_labels(labels, config.class_dropout, shape.num_classes, generator)
        masked = random_masks(targets.shape, targets.device, generator)  # [B, L]
        hidden = self.gpt(torch.where(masked, shape.num_codes, targets), labels)[:, 1:]  # [B, L, W]
        assert self.gpt.head is not None
        entropy = linear_cross_entropy(
            hidden[masked],  # [M, W]
            self.gpt.head.weight,
            targets[masked],
            label_smoothing=config.label_smoothing if self.training else 0.0,
        )
        return {"loss": entropy.loss.mean(), "nll": entropy.nll.detach().mean()}


def random_masks(
    shape: torch.Size | tuple[int, int], device: torch.device, generator: torch.Generator | None = None
) -> torch.Tensor:  # [B, L] bool
    """In each row, cos(pi r / 2) of the positions, r uniform: at least one, and which of them uniformly at random."""
    batch, length = shape
    share = torch.cos(torch.rand(batch, 1, device=device, generator=generator) * (math.pi / 2))  # [B, 1]
    hidden = (share * length).round().clamp(min=1)
    rank = torch.rand(batch, length, device=device, generator=generator).argsort(1).argsort(1)  # [B, L]
    return rank < hidden
