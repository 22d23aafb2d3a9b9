"""Autoregressive prior: p(codes) = product of p(code | earlier codes, class), in raster order.

B batch, h w grid, L codes of a sample, S positions, W width, K codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from models.config_json import Hidden
from models.losses.cross_entropy import linear_cross_entropy
from models.networks.code_shape import CodeShape
from models.networks.gpt import GPT, GPTConfig
from models.priors.corruption import check_share, drop_labels, flat_codes, replace_codes

Pick = Callable[[torch.Tensor], torch.Tensor]  # logits [N, K] to indices [M], N = M or, guided, 2M


@dataclass(frozen=True, kw_only=True)
class AutoregressiveConfig:
    """GPT over codes in raster order."""

    kind: Hidden[Literal["autoregressive"]] = "autoregressive"
    network: GPTConfig  # causal
    pkeep: float = 1.0  # input codes kept; the others become random ones (VQGAN-LC 0.8)
    class_dropout: float = 0.1  # classes hidden, for guidance
    label_smoothing: float = 0.0  # of the targets

    def __post_init__(self) -> None:
        if not 0 < self.pkeep <= 1:
            raise ValueError(f"pkeep: expected a share in (0, 1], got {self.pkeep}")
        check_share("class_dropout", self.class_dropout)
        check_share("label_smoothing", self.label_smoothing)
        if not self.network.causal:
            raise ValueError("network.causal: expected True, got False")
        if self.network.inputs == "continuous":
            raise ValueError("network.inputs: expected 'indices' or 'vectors', got 'continuous'")


class AutoregressivePrior(nn.Module):
    """The forward pass is the training loss; corruption, class dropout and smoothing belong to training mode only."""

    def __init__(self, config: AutoregressiveConfig, codes: CodeShape) -> None:
        super().__init__()
        if codes.groups > 1:
            raise ValueError(f"groups: expected 1 (several need the grouped prior), got {codes.groups}")
        self.config, self.codes = config, codes
        self.gpt = GPT(config.network, codes)

    def forward(
        self,
        codes: torch.Tensor,  # [B, h, w], with frames [B, T, h, w]
        labels: torch.Tensor | None = None,  # [B]
        generator: torch.Generator | None = None,
    ) -> dict[str, torch.Tensor]:
        """``loss`` to train on, and ``nll``, nats per code; equal in evaluation mode."""
        config, shape = self.config, self.codes
        targets = flat_codes(codes, shape.shape, shape.groups)  # [B, L]
        inputs = targets
        if self.training:
            labels = drop_labels(labels, config.class_dropout, shape.num_classes, generator)
            inputs = replace_codes(inputs, 1 - config.pkeep, shape.num_codes, generator)
        hidden = self.gpt(inputs[:, :-1], labels)  # [B, L, W]
        return self._losses(*self._scored(hidden, targets))

    def _scored(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The positions that the loss is about: all."""
        return hidden, targets

    def _losses(self, hidden: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """Mean cross entropy of ``targets`` [B, S] at ``hidden`` [B, S, W]."""
        assert self.gpt.head is not None
        entropy = linear_cross_entropy(
            hidden.flatten(0, 1),
            self.gpt.head.weight,
            targets.flatten(),
            label_smoothing=self.config.label_smoothing if self.training else 0.0,
        )
        return {"loss": entropy.loss.mean(), "nll": entropy.nll.detach().mean()}

    def choose(self, hidden: torch.Tensor, pick: Pick) -> torch.Tensor:  # [N, W] -> [M]
        """The next code of samples whose last position gave ``hidden``."""
        assert self.gpt.head is not None
        return pick(self.gpt.head(hidden))
