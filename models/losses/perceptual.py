"""Differences of what a pretrained network sees, instead of differences of pixels.

``FeatureDistance`` compares feature maps as they are: SeQ-GAN's low, semantic and mixed losses. ``UnitDistance`` is
the formula of LPIPS, on maps whose channels have unit length; with VGG16 and the learned heads it is LPIPS, with
uniform weights and any network it is a distance of its own. Both scale with neither batch nor image size.
B batch, H W pixels, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from models.errors import UserError
from models.pretrained import Backbone, load_backbone
from models.pretrained.vgg16 import LPIPS_LAYERS, load_lpips_heads

LayerSet = Literal["lpips", "low", "sem", "a", "b", "c", "d", "e"]

# the last map before each halving of the image, and what comes after all of them
_LOW = {
    "vgg16": LPIPS_LAYERS,
    "efficientnet_lite0": ("expand1", "expand3", "expand5", "expand11", "head"),
}
_EPS = 1e-10


def layer_set(network: str, name: LayerSet) -> dict[str, float]:
    """Layers of one of SeQ-GAN's sets for VGG16, or of their counterparts, each with weight 1.

    ``"low"`` is the last map at each of five scales, ``"sem"`` the last of them and the logits, ``"a"`` both sets,
    ``"b"``, ``"c"``, ``"d"`` the same without the one, two, three lowest, ``"e"`` the logits alone.
    """
    if network not in _LOW:
        raise UserError(f"perceptual: expected one of {sorted(_LOW)}, got {network!r}")
    low = _LOW[network]
    sets = {"lpips": low, "low": low, "sem": (low[-1], "logits"), "e": ("logits",)}
    for drop, variant in enumerate("abcd"):
        sets[variant] = (*low[drop:], "logits")
    if name not in sets:
        raise UserError(f"layers: expected one of {sorted(sets)}, got {name!r}")
    return dict.fromkeys(sets[name], 1.0)


def mixed_layers(network: str, alpha: float) -> dict[str, float]:
    """SeQ-GAN's ``alpha * sem + (1 - alpha) * low``, one weight a layer."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected a number from 0 to 1, got {alpha}")
    low, sem = layer_set(network, "low"), layer_set(network, "sem")
    weights = {name: alpha * (name in sem) + (1 - alpha) * (name in low) for name in low | sem}
    return {name: weight for name, weight in weights.items() if weight}


class PerceptualLoss(nn.Module, ABC):
    """Weighted sum over layers of a distance of feature maps; the target's maps can be made once and kept."""

    def __init__(self, backbone: Backbone, weights: Mapping[str, float], *, scale_logits: bool = False) -> None:
        """``scale_logits``: logits are of images scaled to the network's own size, maps are not."""
        super().__init__()
        self.backbone, self.weights, self.scale_logits = backbone, dict(weights), scale_logits

    def forward(
        self,
        reconstruction: torch.Tensor,  # [B, 3, H, W] in [-1, 1]
        target: torch.Tensor | Mapping[str, torch.Tensor],  # images, or what targets() made of them
    ) -> torch.Tensor:  # []
        """Mean over the batch."""
        return self.per_image(reconstruction, target).mean()

    def per_image(
        self, reconstruction: torch.Tensor, target: torch.Tensor | Mapping[str, torch.Tensor]
    ) -> torch.Tensor:  # [B]
        """The distance of every image by itself."""
        wanted = self.targets(target) if isinstance(target, torch.Tensor) else target
        found = self._features(reconstruction)
        distances = [weight * self.distance(name, found[name], wanted[name]) for name, weight in self.weights.items()]
        return torch.stack(distances).sum(0)

    @torch.no_grad()
    def targets(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the network sees in the images to be reconstructed; no gradient reaches them."""
        return self._features(images)

    @abstractmethod
    def distance(self, layer: str, found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B]
        """Of two feature maps, for every image."""

    def _features(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        names = set(self.weights)
        # features are made to be compared: not in half precision
        with torch.autocast(images.device.type, enabled=False):
            images = images if images.dtype == torch.float64 else images.float()
            if not (self.scale_logits and "logits" in names):
                return self.backbone.features(images, sorted(names))
            maps = self.backbone.features(images, sorted(names - {"logits"})) if names != {"logits"} else {}
            return {**maps, "logits": self.backbone.logits(images)[:, :, None, None]}


class FeatureDistance(PerceptualLoss):
    """Mean squared difference of every layer's map, as SeQ-GAN writes it."""

    def forward(
        self, reconstruction: torch.Tensor, target: torch.Tensor | Mapping[str, torch.Tensor]
    ) -> torch.Tensor:  # []
        wanted = self.targets(target) if isinstance(target, torch.Tensor) else target
        found = self._features(reconstruction)
        terms = [
            weight * F.mse_loss(_channels_last(found[name]), _channels_last(wanted[name]))
            for name, weight in self.weights.items()
        ]
        return torch.stack(terms).sum()

    def distance(self, layer: str, found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return _channels_last(found).sub(_channels_last(wanted)).square().flatten(1).mean(1)


class UnitDistance(PerceptualLoss):
    """LPIPS's formula: channels scaled to unit length, squared differences weighed by channel, mean over places."""

    def __init__(self, backbone: Backbone, heads: Mapping[str, torch.Tensor]) -> None:
        """``heads`` maps a layer to its weights ``[C]``, or to ``[1]`` for one weight on all of its channels."""
        super().__init__(backbone, dict.fromkeys(heads, 1.0))
        for layer, head in heads.items():
            self.register_buffer(f"head_{layer}", head.float(), persistent=False)

    def distance(self, layer: str, found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        found, wanted = _channels_last(found), _channels_last(wanted)  # [B, h, w, C]
        head: torch.Tensor = self.get_buffer(f"head_{layer}")
        if len(head) > 1:
            places = (_unit(found) - _unit(wanted)).square() @ head.to(found.dtype)
        else:  # the same with a third of the work: |a|^2 + |b|^2 - 2 a.b
            lengths = [torch.linalg.vector_norm(x, dim=3) for x in (found, wanted)]
            a, b = (length / (length + _EPS) for length in lengths)
            product = (found * wanted).sum(3) / ((lengths[0] + _EPS) * (lengths[1] + _EPS))
            places = head * (a.square() + b.square() - 2 * product)
        return places.mean((1, 2))  # [B, h, w] -> [B]


def build_perceptual(
    network: Literal["efficientnet_lite0", "vgg16", "lpips"],
    layers: LayerSet = "lpips",
    *,
    alpha: float | None = None,
    path: Path | str | None = None,
) -> PerceptualLoss:
    """A perceptual loss by name.

    Args:
        network: ``"lpips"`` is LPIPS proper: VGG16 and learned heads, whatever ``layers`` says.
        layers: ``"lpips"`` for LPIPS's formula with uniform weights, else one of SeQ-GAN's sets (:func:`layer_set`).
        alpha: SeQ-GAN's mixture (:func:`mixed_layers`) instead of ``layers``.
        path: weights of the network, see :func:`models.pretrained.load_backbone`.
    """
    if layers not in get_args(LayerSet):
        raise UserError(f"layers: expected one of {sorted(get_args(LayerSet))}, got {layers!r}")
    if network == "lpips":
        return lpips(load_backbone("vgg16", path))
    weights = layer_set(network, layers) if alpha is None else mixed_layers(network, alpha)
    backbone = load_backbone(network, path)
    if alpha is None and layers == "lpips":
        return UnitDistance(backbone, {name: torch.ones(1) for name in weights})
    # vgg's dense layers know images of one size, the other network takes a mean over whatever there is
    return FeatureDistance(backbone, weights, scale_logits=network == "vgg16")


def lpips(vgg16: Backbone, heads: Mapping[str, torch.Tensor] | None = None) -> UnitDistance:
    """LPIPS of a VGG16; heads are those that torchmetrics brings, unless given."""
    return UnitDistance(vgg16, load_lpips_heads() if heads is None else heads)


def _channels_last(x: torch.Tensor) -> torch.Tensor:  # [B, C, h, w] -> [B, h, w, C]
    # the order the network leaves them in; elementwise work in the other order is several times slower
    return x.permute(0, 2, 3, 1)


def _unit(x: torch.Tensor) -> torch.Tensor:  # [..., C]
    # where all channels are 0 the norm has gradient 0
    return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + _EPS)
