"""A codebook with levels of meaning and of detail, whose hardly used codes move towards classes (SGC-VQGAN)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vqkernels._core.checks import check_index_values, check_indices, check_same_device, check_shape
from vqkernels.distributed import sum_of_all
from vqkernels.nn.codebook import OnlineCodebook, advance_
from vqkernels.nn.config import SemanticClustering
from vqkernels.ops.code_stats import code_stats
from vqkernels.ops.gather_codes import gather_codes
from vqkernels.ops.multilevel_nearest_code import multilevel_nearest_code
from vqkernels.ops.reanchor import (
    Anchors,
    SemanticAnchors,
    blend_semantic_,
    choose_semantic_anchors,
    level_weights_of,
    levels_of,
)


class SemanticCodebook(OnlineCodebook):
    """A parameter of codes beside one of class embeddings; the first H entries of a code are its meaning.

    The lookup adds distances of levels (Eq. 6), the update is that of :func:`vqkernels.semantic_reanchor_` over all
    processes. What a code means is the class of the vector it moves to, or all classes by how often they were coded
    with it.
    """

    classes: nn.Parameter  # [C, D]
    histogram: torch.Tensor  # [K, C] float32, running share of each class among a code's vectors; label="histogram"

    def __init__(self, config: SemanticClustering, *shape: Any) -> None:
        super().__init__(config, *shape)
        if self.groups != 1 or self.metric != "l2":
            got = f"{self.groups} and {self.metric!r}"
            raise ValueError(f"codebook: expected one group and metric='l2' with SemanticClustering, got {got}")
        if self.dim % len(config.weights):
            got = f"{len(config.weights)} of {self.dim}"
            raise ValueError(f"codebook.levels: expected a divisor of the code dimension, got {got}")
        self.high = config.high_levels * self.dim // len(config.weights)
        self.high_weight, self.by_histogram = config.high_weight, config.label == "histogram"
        self.classes = nn.Parameter(torch.randn(config.num_classes, self.dim))
        if self.by_histogram:
            self.register_buffer("histogram", torch.zeros(self.num_codes, config.num_classes))

    def labels(self, labels: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        check_indices("labels", labels)
        check_shape("labels", labels, tuple(shape), "x without its vector dimension")
        check_same_device(labels=labels, module=self.usage)
        check_index_values("labels", labels, self.classes.shape[0])
        return labels.reshape(-1).long()

    def find(self, x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:  # [N, 1, D], [1, K, D] -> [N, 1]
        weights = level_weights_of(self.dim, self.high, self.high_weight)
        levels = levels_of(x[:, 0], self.high), levels_of(codes[0].to(x.dtype), self.high)
        return multilevel_nearest_code(*levels, weights, backend=self.backend).indices[:, None]

    @torch.no_grad()
    def update(
        self, x: torch.Tensor, indices: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:  # [N, 1, D], [N, 1], [N] -> [1, K]
        self.about_to_write("weight")
        labels = torch.full_like(indices[:, 0], -1) if labels is None else labels
        chosen = choose_semantic_anchors(
            self.weight[0],
            x[:, 0],
            indices[:, 0],
            labels,
            high=self.high,
            high_weight=self.high_weight,
            anchor=self.anchor,
            seed=self.draws + 1,
            backend=self.backend,
        )
        # the class travels with its vector
        carried = torch.cat([chosen.vectors, chosen.label[:, None].to(chosen.vectors.dtype)], dim=1)
        # one column is enough to count, and as wide as anchors none is needed
        stats, anchors = self._stats_of_all(x[..., :1], indices, Anchors(carried[None], chosen.key[None]))
        vectors, label = anchors.vectors[0, :, :-1], anchors.vectors[0, :, -1].nan_to_num(nan=-1.0).long()
        label = label.where(anchors.key[0].isfinite(), -1)
        meaning, known = self._meaning(label, indices[:, 0], labels)
        anchor = SemanticAnchors(vectors, label, anchors.key[0])
        advance_(self.draws, stats.count)
        blend_semantic_(self.weight[0], self.usage[0], stats.count[0], anchor, meaning, known, self.decay)
        return stats.count

    def _meaning(
        self, label: torch.Tensor, indices: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [K], [N], [N] -> [K, H], [K] bool
        """What each code is drawn to, and whether there is any."""
        embedding = self.classes.detach()[:, : self.high].contiguous()  # [C, H]
        if not self.by_histogram:
            return gather_codes(embedding, label, backend=self.backend), label >= 0
        num_classes = embedding.shape[0]
        pairs = torch.where((indices >= 0) & (labels >= 0), indices * num_classes + labels, -1)
        size = self.num_codes * num_classes
        ones = torch.ones(len(pairs), 1, device=pairs.device)
        counted = code_stats(ones, pairs, size, backend=self.backend).count
        (count,) = sum_of_all(counted.long())
        count = count.view(self.num_codes, num_classes).float()
        share = count / count.sum(dim=1, keepdim=True).clamp(min=1)
        seen = count.sum(dim=1, keepdim=True) > 0
        self.histogram.copy_(
            torch.where(seen, self.decay * self.histogram + (1 - self.decay) * share, self.histogram)
        )
        total = self.histogram.sum(dim=1, keepdim=True)
        mixture = self.histogram / total.clamp(min=torch.finfo(torch.float32).tiny)
        return (mixture.to(embedding.dtype) @ embedding), total[:, 0] > 0
