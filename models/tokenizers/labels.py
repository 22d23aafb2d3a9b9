"""The class of every token, for tokenizers that learn what things are.

From label maps, from SegFormer's prediction, or from clusters of a pretrained network's features where nothing is
labelled. B batch, H W pixels, h w grid, f pixels per side of a token, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch.nn import functional as F

import vqkernels
from models.errors import UserError
from models.pretrained import Backbone, load_backbone
from models.tokenizers.config import SemanticsConfig

_CLUSTER_ITERATIONS = 10
_CLUSTER_VECTORS = 64  # per cluster


class Labeller:
    """Classes of the tokens of a batch."""

    def __init__(
        self, config: SemanticsConfig, downsample: int, batches: Iterator[Mapping[str, torch.Tensor]]
    ) -> None:
        """``batches`` of training images are looked at for clusters alone."""
        self._config, self._downsample = config, downsample
        self._backbone: Backbone | None = None
        if config.labels == "segformer":
            self._backbone = load_backbone("segformer", config.labels_file)
        elif config.labels == "clusters":
            self._backbone = load_backbone(config.labels_network, config.labels_file)
            self._centers = self._clusters(batches)  # [C, F]

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:  # -> [B, h, w] int64, -1 = none
        images, classes = batch["image"], self._config.num_classes
        if self._config.labels == "clusters":
            return self._nearest(images)
        if self._config.labels == "segformer":
            assert isinstance(self._backbone, Backbone)
            maps = self._backbone.label_map(images)  # type: ignore[operator]
        elif "map" not in batch:
            raise UserError("labels: expected 'segformer' or 'clusters' for data without label maps, got 'maps'")
        else:
            maps = batch["map"]
        if int(maps.max()) >= classes:
            raise UserError(
                f"num_classes: expected more than {int(maps.max())}, which a label map holds, got {classes}"
            )
        return majority(maps, self._downsample, classes)

    def _vectors(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, h, w, F] of unit length
        assert self._backbone is not None
        self._backbone.to(images.device)
        layer = self._config.labels_layer or [name for name in self._backbone.layers if name != "logits"][-1]
        height, width = (side // self._downsample for side in images.shape[-2:])
        with torch.no_grad():
            maps = self._backbone.features(images, [layer])[layer].float()
            maps = F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
        return F.normalize(maps, dim=1).permute(0, 2, 3, 1)

    def _clusters(self, batches: Iterator[Mapping[str, torch.Tensor]]) -> torch.Tensor:  # [C, F]
        wanted, rows = self._config.num_classes * _CLUSTER_VECTORS, list[torch.Tensor]()
        while sum(len(row) for row in rows) < wanted:
            rows.append(self._vectors(next(batches)["image"]).flatten(0, 2))
        return vqkernels.kmeans(torch.cat(rows), self._config.num_classes, max_iter=_CLUSTER_ITERATIONS).centroids

    def _nearest(self, images: torch.Tensor) -> torch.Tensor:  # [B, h, w]
        return vqkernels.nearest_code(self._vectors(images), self._centers.to(images.device)).indices


def majority(maps: torch.Tensor, cell: int, num_classes: int) -> torch.Tensor:  # [B, H, W] -> [B, h, w] int64
    """The most frequent class of every cell of pixels, the first of equals; -1 where all pixels are void."""
    batch, height, width = maps.shape
    if height % cell or width % cell:
        raise ValueError(f"maps: expected multiples of {cell} pixels, got {height}x{width}")
    cells = maps.unfold(1, cell, cell).unfold(2, cell, cell).reshape(-1, cell * cell)  # [N, f * f]
    # one histogram a cell; void goes to a column of its own
    places = torch.arange(len(cells), device=maps.device)[:, None] * (num_classes + 1) + cells + 1
    counts = torch.bincount(places.flatten(), minlength=len(cells) * (num_classes + 1))
    counts = counts.view(-1, num_classes + 1)[:, 1:]
    most, label = counts.max(dim=1)
    return torch.where(most > 0, label, -1).view(batch, height // cell, width // cell)
