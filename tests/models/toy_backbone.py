"""A network of two layers whose maps can be written down."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from models.pretrained import Backbone, Info

INFO = Info(name="toy", file="none", source="nowhere", licence="none")


class ToyBackbone(Backbone):
    """``fine``: red, green and their difference; ``coarse``: 2 x 2 means of blue; ``logits``: the mean of blue, once
    more and doubled."""

    layers = ("fine", "coarse", "logits")
    size = 4

    def __init__(self) -> None:
        super().__init__(INFO, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # pixels stay as they are

    def maps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        red, green, blue = self.normalize(images).split(1, dim=1)
        yield "fine", torch.cat([red, green, red - green], 1)
        coarse = F.avg_pool2d(blue, 2)
        yield "coarse", coarse
        mean = coarse.mean((2, 3))
        yield "logits", torch.cat([mean, 2 * mean], 1)[:, :, None, None]

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return self.features(self.scale(images), ["logits"])["logits"].flatten(1)

    def classify(self, embedding: torch.Tensor) -> torch.Tensor:
        return embedding
