"""CLIP, DINOv2, ViT-MAE, ResNet-50 and SegFormer through transformers: a local folder first, then the hub.

Vision transformers take images of one size, to which everything is scaled. Their maps are ``block1``, ``block2``, ...
and ``patches``, the tokens after the last norm (and, for CLIP, after the projection to the space it shares with text,
as VQGAN-LC takes them). ResNet-50 and SegFormer have ``stage1`` to ``stage4`` and ``logits``.
B batch, H W pixels, P patches per side, C channels, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from models.errors import UserError
from models.pretrained.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone, Info

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_DINO_PATCHES = 16  # per side: 224 pixels at 14 a patch, fewer than it was trained on and what others use


def _info(name: str, model: str, licence: str) -> Info:
    return Info(name=name, file=model, source=f"https://huggingface.co/{model}", licence=licence)


CLIP = _info("clip", "openai/clip-vit-large-patch14", "MIT")
DINOV2 = _info("dinov2", "facebook/dinov2-base", "Apache-2.0")
VIT_MAE = _info("vit_mae", "facebook/vit-mae-base", "Apache-2.0 on the hub, CC-BY-NC-4.0 at its authors'")
RESNET50 = _info("resnet50", "microsoft/resnet-50", "Apache-2.0")
SEGFORMER = _info(
    "segformer", "nvidia/segformer-b5-finetuned-cityscapes-1024-1024", "NVIDIA Source Code License, not commercial"
)


class VisionTransformer(Backbone):
    """CLIP, DINOv2 or ViT-MAE."""

    def __init__(self, info: Info, model: Any, *, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(info, mean=mean, std=std)
        self.model, self.size = model, size
        blocks = model.config.num_hidden_layers
        # the last block is left out: some versions of transformers give it with the norm, some without
        self.layers = (*(f"block{number}" for number in range(1, blocks)), "patches")

    def maps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """The network runs to its end, whatever is asked for."""
        output = self._run(images, output_hidden_states=True)
        for name in self.layers[:-1]:
            yield name, _to_map(output.hidden_states[int(name[len("block") :])][:, 1:])
        yield "patches", _to_map(self._final(output)[:, 1:])

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """CLIP's image embedding, DINOv2's class token, the mean patch of ViT-MAE."""
        output = self._run(images)
        if self.info.name == "clip":
            return output.image_embeds
        final = self._final(output)
        return final[:, 0] if self.info.name == "dinov2" else final[:, 1:].mean(1)

    def _run(self, images: torch.Tensor, **options: Any) -> Any:
        pixels = self.normalize(self.scale(images))
        if self.info.name == "vit_mae":  # tokens are sorted by noise, which is here their own order
            tokens = (self.size // self.model.config.patch_size) ** 2
            order = torch.arange(tokens, device=pixels.device, dtype=torch.float32)
            options["noise"] = order.expand(len(pixels), -1)
        return self.model(pixel_values=pixels, **options)

    def _final(self, output: Any) -> torch.Tensor:  # [B, 1 + L, C]
        tokens = output.last_hidden_state
        if self.info.name == "clip":
            tokens = self.model.visual_projection(self.model.vision_model.post_layernorm(tokens))
        return tokens


class Convolutional(Backbone):
    """ResNet-50 or SegFormer: maps at four scales, from images of any size."""

    layers = ("stage1", "stage2", "stage3", "stage4", "logits")

    def __init__(self, info: Info, model: Any, *, size: int) -> None:
        super().__init__(info, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        self.model, self.size = model, size

    def maps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """The network runs to its end, whatever is asked for."""
        output = self.model(pixel_values=self.normalize(images), output_hidden_states=True)
        yield from zip(self.layers[:-1], output.hidden_states[-4:], strict=True)
        logits = output.logits  # [B, classes] or, for SegFormer, [B, classes, H / 4, W / 4]
        yield "logits", logits if logits.dim() == 4 else logits[:, :, None, None]

    def embed(self, images: torch.Tensor) -> torch.Tensor:  # [B, C], the mean of the last stage
        return self.features(self.scale(images), ["stage4"])["stage4"].mean((2, 3))

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        return self.features(self.scale(images), ["logits"])["logits"].mean((2, 3))

    @torch.no_grad()
    def label_map(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] in [-1, 1] -> [B, H, W] int64
        """SegFormer's class of every pixel."""
        logits = self.features(images, ["logits"])["logits"]
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False).argmax(1)


def _to_map(tokens: torch.Tensor) -> torch.Tensor:  # [B, P * P, C] -> [B, C, P, P]
    side = round(tokens.shape[1] ** 0.5)
    return tokens.mT.unflatten(2, (side, side))


def load_pretrained(info: Info, kind: str, path: Path | str | None, **options: Any) -> Any:
    """A transformers model of class ``kind``, from a folder or from the hub."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"{info.name}: package transformers is not installed; pip install transformers") from error
    model = info.file if path is None else str(path)
    absent = f"{info.name}: no weights at {model}; get {info.file} from {info.source} ({info.licence})"
    if not Path(model).is_dir() and (model.count("/") != 1 or model.startswith((".", "/"))):
        raise UserError(absent)  # not the name of something on the hub either
    try:
        loaded, report = getattr(transformers, kind).from_pretrained(model, output_loading_info=True, **options)
    except (OSError, ValueError) as error:
        raise UserError(f"{absent}; transformers says: {_first_line(error)}") from error
    # transformers draws what it does not find at random, and only warns
    lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if lacking:
        raise UserError(f"{info.name}: {model} holds other weights (no {lacking[0]} and {len(lacking) - 1} more)")
    return loaded


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _finish(backbone: Backbone, path: Path | str | None) -> Backbone:
    backbone.freeze()
    backbone.published = path is None
    return backbone


def load_clip(path: Path | str | None = None) -> Backbone:
    model = load_pretrained(CLIP, "CLIPVisionModelWithProjection", path)
    size = model.config.image_size
    return _finish(VisionTransformer(CLIP, model, size=size, mean=_CLIP_MEAN, std=_CLIP_STD), path)


def load_dinov2(path: Path | str | None = None) -> Backbone:
    model = load_pretrained(DINOV2, "Dinov2Model", path)
    size = model.config.patch_size * _DINO_PATCHES
    return _finish(VisionTransformer(DINOV2, model, size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD), path)


def load_vit_mae(path: Path | str | None = None) -> Backbone:
    model = load_pretrained(VIT_MAE, "ViTMAEModel", path, mask_ratio=0.0)
    size = model.config.image_size
    return _finish(VisionTransformer(VIT_MAE, model, size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD), path)


def _load_convolutional(info: Info, kind: str, size: int, path: Path | str | None = None) -> Backbone:
    return _finish(Convolutional(info, load_pretrained(info, kind, path), size=size), path)


LOADERS: dict[str, Callable[[Path | str | None], Backbone]] = {
    "clip": load_clip,
    "dinov2": load_dinov2,
    "vit_mae": load_vit_mae,
    "resnet50": partial(_load_convolutional, RESNET50, "ResNetForImageClassification", 224),
    "segformer": partial(_load_convolutional, SEGFORMER, "SegformerForSemanticSegmentation", 512),
}
