"""What SGC-VQGAN adds to a tokenizer: levels of its codes for the decoder, and a loss between codes and classes."""

from __future__ import annotations

import torch
from torch import nn

import vqkernels
from models.losses.semantic import SemanticLoss
from models.networks.aggregator import Aggregator
from models.tokenizers.config import SemanticsConfig


class Semantics(nn.Module):
    """Aggregator of levels, and the semantic loss with its class vectors, which only training needs.

    The vectors of the classes are those that a semantic codebook draws its codes to: one parameter serves both. Where
    the loss keeps several centres a class, the codebook gets their mean before every step.
    """

    def __init__(self, config: SemanticsConfig, quantizer: vqkernels.VectorQuantizer) -> None:
        super().__init__()
        self.weight, self._on_vectors = config.weight, config.on == "codes_and_vectors"
        self.aggregator = Aggregator(config.aggregator, quantizer.code_dim, config.loss.weights, config.sigma)
        self.loss = SemanticLoss(config.loss, config.num_classes, quantizer.code_dim)
        classes = getattr(quantizer.table, "classes", None)
        self.guides_codes = classes is not None
        self._shared = classes is not None and self.loss.weight.shape == classes.shape
        # in a list, for they are the quantizer's and must not be saved twice
        self._classes = [] if classes is None else [classes]
        if self._shared:
            with torch.no_grad():
                classes.copy_(self.loss.weight)
            self.loss.weight = None
        elif classes is not None:
            classes.requires_grad_(False)

    def forward(
        self,
        codes: torch.Tensor,  # [B, D, h, w]
        vectors: torch.Tensor,  # [B, D, h, w]
        labels: torch.Tensor,  # [B, h, w] int64, -1 = none
        step: int,
    ) -> torch.Tensor:  # []
        """The loss of the codes, and of the vectors they stand for where the config says so."""
        own = self._classes[0] if self._shared else None
        if self._classes and not self._shared:
            with torch.no_grad():
                self._classes[0].copy_(self.loss.class_vectors)
        given = labels.flatten()
        loss: torch.Tensor = self.loss(_rows(codes), given, step, own)
        return loss + self.loss(_rows(vectors), given, step, own) if self._on_vectors else loss


def _rows(x: torch.Tensor) -> torch.Tensor:  # [B, D, h, w] -> [N, D]
    return x.movedim(1, -1).flatten(0, -2)
