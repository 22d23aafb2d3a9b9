"""Inception-v3 of the Frechet inception distance and the inception score, in torch-fidelity's weight layout.

This is the network of 2015-12-05 as TensorFlow ran it: average pools leave the border out, the last block takes the
maximum, images are rounded to 8 bits and scaled to 299 pixels by TensorFlow's first bilinear rule. Batch norms are
worked into the convolutions. B batch, H W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from models.errors import UserError
from models.pretrained.backbone import (
    Backbone,
    Info,
    fold_batch_norm,
    is_published,
    put_weights,
    read_weights,
    weights_path,
)

INFO = Info(
    name="inception",
    file="weights-inception-2015-12-05-6726825d.pth",
    source="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    licence="Apache-2.0",
    sha256="6726825d",
)
_EPS = 1e-3

Kernel = int | tuple[int, int]
Step = tuple[str, int, Kernel] | tuple[str, int, Kernel, int]  # name in the file, channels out, kernel, stride
Branch = tuple[str | Step | tuple[Step, Step], ...]  # "avg" and "max" pool; two steps together are a fork


def _chain(name: str, *steps: tuple[int, Kernel] | tuple[int, Kernel, int]) -> Branch:
    return tuple((f"{name}_{number}", *step) for number, step in enumerate(steps, 1))


def _fork(name: str) -> tuple[Step, Step]:
    return (f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))


def _block_a(pooled: int) -> tuple[Branch, ...]:
    return (
        (("branch1x1", 64, 1),),
        _chain("branch5x5", (48, 1), (64, 5)),
        _chain("branch3x3dbl", (64, 1), (96, 3), (96, 3)),
        ("avg", ("branch_pool", pooled, 1)),
    )


def _block_c(width: int) -> tuple[Branch, ...]:
    row, column = (1, 7), (7, 1)
    return (
        (("branch1x1", 192, 1),),
        _chain("branch7x7", (width, 1), (width, row), (192, column)),
        _chain("branch7x7dbl", (width, 1), (width, column), (width, row), (width, column), (192, row)),
        ("avg", ("branch_pool", 192, 1)),
    )


def _block_e(pool: str) -> tuple[Branch, ...]:
    return (
        (("branch1x1", 320, 1),),
        (("branch3x3_1", 384, 1), _fork("branch3x3_2")),
        (*_chain("branch3x3dbl", (448, 1), (384, 3)), _fork("branch3x3dbl_3")),
        (pool, ("branch_pool", 192, 1)),
    )


_BLOCK_B: tuple[Branch, ...] = (
    (("branch3x3", 384, 3, 2),),
    _chain("branch3x3dbl", (64, 1), (96, 3), (96, 3, 2)),
    ("max2",),
)
_BLOCK_D: tuple[Branch, ...] = (
    _chain("branch3x3", (192, 1), (320, 3, 2)),
    _chain("branch7x7x3", (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)),
    ("max2",),
)
_BLOCKS = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": _BLOCK_B,
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": _BLOCK_D,
    "Mixed_7b": _block_e("avg"),
    "Mixed_7c": _block_e("max"),
}


class Conv(nn.Conv2d):
    """A convolution and its rectification; only those of stride 1 are padded."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel, stride: int = 1, padded: bool = True) -> None:
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if padded and stride == 1 else (0, 0)
        super().__init__(inputs, outputs, (height, width), stride, padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(super().forward(x), inplace=True)


class Block(nn.Module):
    """Branches of pools and convolutions side by side, concatenated."""

    def __init__(self, inputs: int, branches: Sequence[Branch]) -> None:
        super().__init__()
        self.branches = branches
        self.outputs = 0
        for branch in branches:
            channels = inputs
            for step in branch:
                if isinstance(step, str):
                    continue
                steps = step if isinstance(step[0], tuple) else (step,)
                for name, width, *shape in steps:
                    self.add_module(name, Conv(channels, width, *shape))
                channels = sum(width for _, width, *_ in steps)
            self.outputs += channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, C', h', w']
        found = []
        for branch in self.branches:
            y = x
            for step in branch:
                if isinstance(step, str):
                    y = _POOLS[step](y)
                elif isinstance(step[0], tuple):
                    y = torch.cat([self.get_submodule(name)(y) for name, *_ in step], 1)
                else:
                    y = self.get_submodule(step[0])(y)
            found.append(y)
        return torch.cat(found, 1)


_POOLS = {
    "avg": lambda x: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),
    "max": lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    "max2": lambda x: F.max_pool2d(x, 3, stride=2),
}


class Inception(Backbone):
    """The network; weights come by :func:`load`. No gradient reaches the images, they are rounded to 8 bits."""

    layers = ("pool1", "pool2", "Mixed_5d", "Mixed_6e", "Mixed_7c")
    size = 299

    def __init__(self) -> None:
        super().__init__(INFO, mean=(128 / 255,) * 3, std=(128 / 255,) * 3)
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, padded=False)
        channels = 192
        for name, branches in _BLOCKS.items():
            block = Block(channels, branches)
            self.add_module(name, block)
            channels = block.outputs
        self.fc = nn.Linear(channels, 1008)

    @torch.no_grad()
    def maps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        x = self.normalize(self.scale(images)).contiguous(memory_format=torch.channels_last)  # [B, 3, 299, 299]
        x = _POOLS["max2"](self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        yield "pool1", x  # [B, 64, 73, 73]
        x = _POOLS["max2"](self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        yield "pool2", x  # [B, 192, 35, 35]
        for name in _BLOCKS:
            x = self.get_submodule(name)(x)
            yield name, x

    def scale(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, 3, 299, 299]
        """8-bit pixels; output pixel i takes its value at i * H / 299, between the two pixels there."""
        x = images.add(1).mul(127.5).round().clamp(0, 255)
        for dim in (2, 3):
            side = x.shape[dim]
            place = torch.arange(self.size, device=x.device, dtype=torch.float32) * (side / self.size)
            low = place.long()
            shape = [-1 if axis == dim else 1 for axis in range(4)]
            x = torch.lerp(
                x.index_select(dim, low),
                x.index_select(dim, (low + 1).clamp(max=side - 1)),
                (place - low).to(x.dtype).view(shape),
            )
        return x / 127.5 - 1

    def embed(self, images: torch.Tensor) -> torch.Tensor:  # -> [B, 2048], what FID is taken of
        return self.features(images, ["Mixed_7c"])["Mixed_7c"].mean((2, 3))

    def classify(self, embedding: torch.Tensor) -> torch.Tensor:  # -> [B, 1008]
        """Without the bias, as torch-fidelity's inception score takes them."""
        return F.linear(embedding, self.fc.weight)


def load(path: Path | str | None = None) -> Inception:
    """The network with weights of a file in torch-fidelity's layout."""
    file = weights_path(INFO, path)
    with torch.device("meta"):
        network = Inception()
    convolutions = [name for name, module in network.named_modules() if isinstance(module, Conv)]
    try:
        folded = fold_batch_norm(
            read_weights(INFO, file), {name: (f"{name}.conv", f"{name}.bn") for name in convolutions}, _EPS
        )
    except KeyError as error:
        raise UserError(f"{INFO.name}: {file} holds other weights (no {error})") from error
    put_weights(network, folded, file)
    network.published = is_published(INFO, file)
    return network
