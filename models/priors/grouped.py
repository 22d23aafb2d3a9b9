"""Autoregressive prior of grouped or residual codes: GPT from position to position, a depth head within each.

B batch, h w grid, L positions of a sample, G groups, W width, K codes of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from models.config_json import Hidden
from models.losses.cross_entropy import linear_cross_entropy
from models.networks.code_shape import CodeShape
from models.networks.depth_head import DepthHead, DepthHeadConfig
from models.networks.gpt import GPT, GPTConfig
from models.priors.autoregressive import Pick
from models.priors.corruption import check_share, drop_labels, flat_codes


@dataclass(frozen=True, kw_only=True)
class GroupedConfig:
    """GPT over positions and a head over the indices of each."""

    kind: Hidden[Literal["grouped"]] = "grouped"
    network: GPTConfig  # causal
    head: DepthHeadConfig  # over the indices of a position
    class_dropout: float = 0.1  # classes hidden, for guidance
    label_smoothing: float = 0.0  # of the targets

    def __post_init__(self) -> None:
        check_share("class_dropout", self.class_dropout)
        check_share("label_smoothing", self.label_smoothing)
        if not self.network.causal:
            raise ValueError("network.causal: expected True, got False")
        if self.network.inputs == "continuous":
            raise ValueError("network.inputs: expected 'indices' or 'vectors', got 'continuous'")


class GroupedPrior(nn.Module):
    """The forward pass is the training loss. For ``inputs="vectors"``, ``gpt.embed.set_codes`` comes first."""

    def __init__(self, config: GroupedConfig, codes: CodeShape) -> None:
        super().__init__()
        if codes.groups < 2:
            raise ValueError(f"groups: expected at least 2, got {codes.groups}")
        self.config, self.codes = config, codes
        self.gpt = GPT(config.network, codes)
        self.head = DepthHead(config.head, width=config.network.width, num_codes=codes.num_codes, groups=codes.groups)

    def forward(
        self,
        codes: torch.Tensor,  # [B, h, w, G], with frames [B, T, h, w, G]
        labels: torch.Tensor | None = None,  # [B]
        generator: torch.Generator | None = None,
    ) -> dict[str, torch.Tensor]:
        """``loss`` to train on, and ``nll``, nats per index, mean over positions and groups."""
        config, shape = self.config, self.codes
        targets = flat_codes(codes, shape.shape, shape.groups)  # [B, L, G]
        if self.training:
            labels = drop_labels(labels, config.class_dropout, shape.num_classes, generator)
        hidden = self.gpt(targets[:, :-1], labels)  # [B, L, W]
        targets = targets.flatten(0, 1)  # [BL, G]
        features = self.head(hidden.flatten(0, 1), targets[:, :-1])  # [BL, G, W]
        smoothing = config.label_smoothing if self.training else 0.0
        entropies = [
            linear_cross_entropy(
                features[:, group],
                self.head.output_weight(group),
                targets[:, group],
                label_smoothing=smoothing,
            )
            for group in range(shape.groups)
        ]
        loss = torch.stack([entropy.loss.mean() for entropy in entropies]).mean()
        nll = torch.stack([entropy.nll.detach().mean() for entropy in entropies])  # [G]
        return {"loss": loss, "nll": nll.mean()}

    def choose(self, hidden: torch.Tensor, pick: Pick) -> torch.Tensor:  # [N, W] -> [M, G]
        """The next G indices of samples whose last position gave ``hidden``, one after the other.

        With guidance, N = 2M: both halves of the head see the index that was picked.
        """
        chosen = hidden.new_empty(len(hidden), 0, dtype=torch.int64)  # [N, g]
        for _ in range(self.codes.groups):
            index = pick(self.head.next_logits(hidden, chosen))  # [M]
            chosen = torch.cat([chosen, index.repeat(len(hidden) // len(index)).unsqueeze(1)], dim=1)
        return chosen[: len(index)]
