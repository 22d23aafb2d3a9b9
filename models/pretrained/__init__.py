"""Frozen networks with published weights, behind one interface.

``load_backbone(name)`` finds the weights by itself where they are installed or downloaded, or says in one line which
file is missing, where it comes from and under which licence.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from models.errors import UserError
from models.pretrained import efficientnet_lite0, huggingface, i3d, inception, vgg16
from models.pretrained.backbone import Backbone, Info

__all__ = ["BACKBONES", "Backbone", "Info", "load_backbone"]

BACKBONES: dict[str, Callable[[Path | str | None], Backbone]] = {
    "efficientnet_lite0": efficientnet_lite0.load,
    "vgg16": vgg16.load,
    "inception": inception.load,
    "i3d": i3d.load,
    **huggingface.LOADERS,
}


def load_backbone(name: str, path: Path | str | None = None) -> Backbone:
    """A frozen network with its weights.

    Args:
        name: one of ``BACKBONES``; only ``"efficientnet_lite0"`` comes with what is installed here.
        path: file, or folder that holds it; for the networks of transformers a folder or a name on the hub. None
            for the usual place: the installed package, the downloads of torch.hub, the hub.

    Raises:
        UserError: if there is no such network, or its weights are absent or are others.
    """
    if name not in BACKBONES:
        raise UserError(f"backbone: expected one of {sorted(BACKBONES)}, got {name!r}")
    return BACKBONES[name](path)
