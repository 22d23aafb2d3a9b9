"""What every pretrained network here can do, and where its weights are looked for.

B batch, H W pixels, C channels of a feature map, D width of an embedding.
"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from models.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of pixels in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)
_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile)
_UNREADABLE += (safetensors.SafetensorError,)


@dataclass(frozen=True)
class Info:
    """A network and the weights that were published for it."""

    name: str  # what load_backbone calls it
    file: str  # file or hub name of the published weights
    source: str  # where they come from
    licence: str
    sha256: str = ""  # of the published file, or the first digits of it; empty for a folder


class Backbone(nn.Module, ABC):
    """A frozen network. Gradients reach the images and never the weights; ``train()`` leaves it in eval mode."""

    layers: tuple[str, ...]  # feature maps by name, from the first to the last
    size: int  # pixels per side that embed() and logits() scale images to

    def __init__(self, info: Info, *, mean: Sequence[float], std: Sequence[float]) -> None:
        """``mean`` and ``std`` are of pixels in [0, 1], as training of the network saw them."""
        super().__init__()
        self.info = info
        self.published = False  # whether the weights are the published ones, bit for bit
        # as of pixels in [-1, 1]; never on the meta device, where networks wait for their weights
        for name, values in (("mean", [2 * value - 1 for value in mean]), ("std", [2 * value for value in std])):
            self.register_buffer(name, torch.tensor(values, device="cpu")[:, None, None], persistent=False)

    @abstractmethod
    def maps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Feature maps by name as the network makes them, ``layers`` among them."""

    def features(
        self,
        images: torch.Tensor,  # [B, 3, H, W] in [-1, 1]
        layers: Sequence[str] | None = None,
    ) -> dict[str, torch.Tensor]:  # each [B, C, h, w]
        """The named maps (all of them by default), computed no further than the deepest one asked for."""
        wanted = self.layers if layers is None else layers
        if not wanted or not set(wanted) <= set(self.layers):
            raise ValueError(f"layers: expected some of {self.info.name}'s {list(self.layers)}, got {list(wanted)}")
        found = {}
        for name, value in self.maps(images):
            if name in wanted:
                found[name] = value
            if len(found) == len(set(wanted)):
                break
        return found

    @abstractmethod
    def embed(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] in [-1, 1] -> [B, D]
        """One vector an image, the one that distances between sets of images are taken of."""

    def classify(self, embedding: torch.Tensor) -> torch.Tensor:  # [B, D] -> [B, classes]
        """Scores of the network's classes, of what embed() gave."""
        raise UserError(f"{self.info.name}: has no logits")

    def logits(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] in [-1, 1] -> [B, classes]
        """Scores of the network's classes."""
        return self.classify(self.embed(images))

    def normalize(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] in [-1, 1]
        """Pixels as the network wants them."""
        return (images - self.mean) / self.std

    def scale(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, 3, size, size]
        """Bicubic with antialiasing, and nothing at all to images of the right size."""
        if images.shape[-2:] == (self.size, self.size):
            return images
        return F.interpolate(images, (self.size, self.size), mode="bicubic", align_corners=False, antialias=True)

    def freeze(self) -> None:
        """Called once the weights are in."""
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> Backbone:
        return super().train(False)


def weights_path(info: Info, path: Path | str | None) -> Path:
    """The weight file: ``path`` (or a folder that holds it), else what torch.hub has downloaded before."""
    folder = Path(torch.hub.get_dir()) / "checkpoints" if path is None else Path(path)
    file = folder / info.file if path is None or folder.is_dir() else folder
    if not file.is_file():
        raise UserError(f"{info.name}: no weights at {file}; get {info.file} from {info.source} ({info.licence})")
    return file


def is_published(info: Info, path: Path) -> bool:
    """Whether a file holds the published weights bit for bit."""
    with path.open("rb") as file:
        return bool(info.sha256) and hashlib.file_digest(file, "sha256").hexdigest().startswith(info.sha256)


def read_weights(info: Info, path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a file, read without running anything it contains."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        # torch's own words would send the reader to an unsafe way of loading
        raise UserError(f"{info.name}: {path} is not a file of tensors ({type(error).__name__})") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{info.name}: expected a state dict in {path}, got {type(state).__name__}")
    return dict(state)


def put_weights(backbone: Backbone, weights: Mapping[str, torch.Tensor], source: Path) -> None:
    """Move weights into a network built on the meta device."""
    try:
        backbone.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        shown = " ".join(lines)
        shown = shown if len(shown) < 200 else f"{shown[:200]}..."
        raise UserError(f"{backbone.info.name}: {source} holds other weights ({shown})") from error
    backbone.freeze()


def fold_batch_norm(
    weights: Mapping[str, torch.Tensor], pairs: Mapping[str, tuple[str, str]], eps: float
) -> dict[str, torch.Tensor]:
    """The weights with every batch norm worked into the convolution before it; exact but for rounding.

    Args:
        weights: state dict with convolutions that have no bias.
        pairs: name of the result -> names of its convolution and of its batch norm.
        eps: of the batch norms.
    """
    folded = dict(weights)
    for name, (conv, norm) in pairs.items():
        weight = folded.pop(f"{conv}.weight")  # [C, ., ., .]
        gain, bias, mean, variance = (
            folded.pop(f"{norm}.{part}").double() for part in ("weight", "bias", "running_mean", "running_var")
        )
        folded.pop(f"{norm}.num_batches_tracked", None)
        gain = gain / (variance + eps).sqrt()
        folded[f"{name}.weight"] = (weight.double() * gain[:, None, None, None]).to(weight.dtype)
        folded[f"{name}.bias"] = (bias - mean * gain).to(weight.dtype)
    return folded
