"""Autoregressive prior of continuous tokens (SEMANTICIST's epsilon-LlamaGen).

GPT gives a vector for each next token, and a small flow turns noise into the token under that condition. The discrete
twin is the autoregressive prior, over the indices of quantized tokens.
B batch, T tokens of a sample, D token dimension, W width, R repetitions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from models.config_json import Hidden
from models.networks.code_shape import CodeShape
from models.networks.flow_head import FlowHead, FlowHeadConfig
from models.networks.gpt import GPT, GPTConfig
from models.priors.corruption import check_share, drop_labels
from models.priors.diffusion import Flow, FlowConfig


@dataclass(frozen=True, kw_only=True)
class ConceptConfig:
    """GPT over tokens and a flow for each."""

    kind: Hidden[Literal["concept"]] = "concept"
    network: GPTConfig  # causal, inputs "continuous"
    head: FlowHeadConfig  # from noise to a token
    repetitions: int = 4  # each token trains the head at this many times
    class_dropout: float = 0.1  # classes hidden, for guidance

    def __post_init__(self) -> None:
        check_share("class_dropout", self.class_dropout)
        if self.network.inputs != "continuous":
            raise ValueError(f"network.inputs: expected 'continuous', got '{self.network.inputs}'")
        if self.repetitions < 1:
            raise ValueError(f"repetitions: expected at least 1, got {self.repetitions}")


class ConceptPrior(nn.Module):
    """The forward pass is the training loss. The grid of ``codes`` is (1, T): the first T tokens of the tokenizer."""

    def __init__(self, config: ConceptConfig, codes: CodeShape) -> None:
        super().__init__()
        self.config, self.codes = config, codes
        self.gpt = GPT(config.network, codes)
        width = config.network.width
        self.head = FlowHead(config.head, token_dim=codes.code_dim, condition_dim=width)
        self.position = nn.Parameter(torch.empty(codes.length, width))  # of the head's condition
        nn.init.normal_(self.position, std=0.02)
        self.process = Flow(FlowConfig())

    def forward(
        self,
        tokens: torch.Tensor,  # [B, T, D]
        labels: torch.Tensor | None = None,  # [B]
        generator: torch.Generator | None = None,
    ) -> dict[str, torch.Tensor]:
        """``loss``: squared error of the velocity."""
        if tokens.shape[1:] != (self.codes.length, self.codes.code_dim):
            expected = f"[B, {self.codes.length}, {self.codes.code_dim}]"
            raise ValueError(f"tokens: expected {expected}, got {tuple(tokens.shape)}")
        if self.training:
            labels = drop_labels(labels, self.config.class_dropout, self.codes.num_classes, generator)
        condition = self.gpt(tokens[:, :-1], labels) + self.position  # [B, T, W]
        condition = condition.flatten(0, 1).repeat(self.config.repetitions, 1)  # [RBT, W]
        terms = self.process.terms(lambda x, time: self.head(x, time, condition), self.targets(tokens), generator)
        return {"loss": terms["loss"].mean()}

    def targets(self, tokens: torch.Tensor) -> torch.Tensor:  # [B, T, D] -> [RBT, D]
        """What the flow learns to make."""
        return tokens.flatten(0, 1).repeat(self.config.repetitions, 1)
