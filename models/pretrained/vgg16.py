"""VGG16 in torchvision's weight layout, and the heads that make LPIPS of it.

Feature maps are the rectified outputs of its 13 convolutions, ``relu1_1`` to ``relu5_3``, and ``logits``.
B batch, H W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from models.errors import UserError
from models.pretrained.backbone import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    Info,
    is_published,
    put_weights,
    read_weights,
    weights_path,
)

INFO = Info(
    name="vgg16",
    file="vgg16-397923af.pth",
    source="https://download.pytorch.org/models/vgg16-397923af.pth",
    licence="BSD-3-Clause",
    sha256="397923af",
)
HEADS_INFO = Info(
    name="lpips",
    file="vgg.pth",
    source="PyPI package torchmetrics",
    licence="BSD-2-Clause",
    sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
)
LPIPS_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # a pool after each level
_HIDDEN, _CLASSES, _POOLED = 4096, 1000, 7


class VGG16(Backbone):
    """The network; weights come by :func:`load`."""

    layers = (
        *(f"relu{level + 1}_{i + 1}" for level, widths in enumerate(_WIDTHS) for i in range(len(widths))),
        "logits",
    )
    size = 224

    def __init__(self) -> None:
        super().__init__(INFO, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        stages: list[nn.Module] = []
        inputs = 3
        for widths in _WIDTHS:
            for width in widths:
                stages += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = width
            stages.append(nn.MaxPool2d(2))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Sequential(
            nn.Linear(inputs * _POOLED**2, _HIDDEN),
            nn.ReLU(inplace=True),
            nn.Identity(),  # where training drops values out
            nn.Linear(_HIDDEN, _HIDDEN),
            nn.ReLU(inplace=True),
            nn.Identity(),
            nn.Linear(_HIDDEN, _CLASSES),
        )

    def maps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        x = self.normalize(images).contiguous(memory_format=torch.channels_last)
        names = iter(self.layers)
        for stage in self.stages:
            x = stage(x)
            if isinstance(stage, nn.ReLU):
                yield next(names), x
        yield "logits", self.classifier(self._pooled(x))[:, :, None, None]

    def embed(self, images: torch.Tensor) -> torch.Tensor:  # -> [B, 4096], the last hidden layer
        x = self.normalize(self.scale(images)).contiguous(memory_format=torch.channels_last)
        return self.classifier[:5](self._pooled(self.stages(x)))

    def classify(self, embedding: torch.Tensor) -> torch.Tensor:
        return self.classifier[6](embedding)

    def _pooled(self, x: torch.Tensor) -> torch.Tensor:  # [B, 512, h, w] -> [B, 25088], channels first
        return F.adaptive_avg_pool2d(x, _POOLED).flatten(1)


def load(path: Path | str | None = None) -> VGG16:
    """The network with weights of a file in torchvision's layout."""
    file = weights_path(INFO, path)
    with torch.device("meta"):
        network = VGG16()
    weights = {name.replace("features.", "stages.", 1): value for name, value in read_weights(INFO, file).items()}
    put_weights(network, weights, file)
    network.published = is_published(INFO, file)
    return network


def load_lpips_heads(path: Path | str | None = None) -> dict[str, torch.Tensor]:  # layer -> [C]
    """What LPIPS weighs the channels of each layer with, from torchmetrics by default."""
    file = _bundled_heads() if path is None else weights_path(HEADS_INFO, path)
    weights = read_weights(HEADS_INFO, file)
    try:
        heads = {layer: weights[f"lin{i}.model.1.weight"].flatten() for i, layer in enumerate(LPIPS_LAYERS)}
    except KeyError as error:
        raise UserError(f"{HEADS_INFO.name}: {file} holds other weights (no {error})") from error
    widths = [len(head) for head in heads.values()]
    if widths != [level[-1] for level in _WIDTHS]:
        raise UserError(f"{HEADS_INFO.name}: {file} holds heads of other widths ({widths})")
    return heads


def _bundled_heads() -> Path:
    import torchmetrics

    return Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / HEADS_INFO.file
