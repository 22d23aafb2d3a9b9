"""Features of a CLIP vision encoder, for a codebook: ``python -m models.extract_features IMAGES --out FOLDER``.

As VQGAN-LC makes them: every patch token goes through the last layer norm and the projection to the text space, then
the grid of tokens is averaged down to 4 x 4 per image. ``python -m vqkernels.kmeans FOLDER --k 100000 --out
codebook.npy`` makes codes of them, which ``--features codebook.npy`` gives to a tokenizer. Shards that are whole are
not made again. B batch, P patches per side, H hidden size, D features, S pixels per side.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from PIL import Image
from torch.nn import functional as F

from models import command
from models.data.photos import image_files, read_image
from models.environment import device_of
from models.errors import UserError, first_line, read_object

# of the pixels CLIP was trained on, in [0, 1]
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)

Encode = Callable[[torch.Tensor], torch.Tensor]  # [B, 3, S, S] in [0, 1] -> [B, grid, grid, D]


class Encoder(NamedTuple):
    """A vision encoder and the size of the images it takes."""

    encode: Encode
    image_size: int


def load_encoder(model: str, *, grid: int, device: str = "cpu") -> Encoder:
    """The CLIP vision encoder of a local folder or of the hub, with the pooling of VQGAN-LC.

    Args:
        model: folder, or name on the hub.
        grid: tokens per side that are left of an image; divides the patches per side.
        device: where it runs.
    """
    try:
        from transformers import CLIPVisionModelWithProjection
    except ImportError as error:
        raise UserError("package transformers is not installed; pip install transformers") from error
    try:
        clip = CLIPVisionModelWithProjection.from_pretrained(model).eval().requires_grad_(False).to(device)
    except (OSError, ValueError) as error:
        raise UserError(f"model: expected a CLIP model, got {model!r} ({first_line(error)})") from error
    size, patches = clip.config.image_size, clip.config.image_size // clip.config.patch_size
    if patches % grid:
        raise UserError(f"grid: expected a divisor of the {patches} patches per side of {model}, got {grid}")
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (_MEAN, _STD))

    @torch.inference_mode()
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        hidden = clip.vision_model((pixels.to(device) - mean) / std).last_hidden_state[:, 1:]  # [B, P * P, H]
        tokens = clip.visual_projection(clip.vision_model.post_layernorm(hidden))  # [B, P * P, D]
        image = tokens.mT.unflatten(2, (patches, patches))
        return F.avg_pool2d(image, patches // grid).permute(0, 2, 3, 1)

    return Encoder(encode, size)


def extract(
    images: Path, out: Path, *, model: str, grid: int, batch_size: int, shard_images: int, device: str
) -> dict[str, Any]:
    """Write the shards that are missing in ``out``; returns what was done."""
    for name, number in (("grid", grid), ("batch_size", batch_size), ("shard_images", shard_images)):
        if number < 1:
            raise UserError(f"{name}: expected at least 1, got {number}")
    device_of(device)
    if not images.is_dir():
        raise UserError(f"images: expected a folder, got {str(images)!r}")
    files = image_files(images)
    if not files:
        raise UserError(f"images: expected images below {images}, got none")
    names = [str(file.relative_to(images)) for file in files]
    _check_same(out, {"model": model, "grid": grid, "shard_images": shard_images, "images": names})
    encoder: Encoder | None = None
    written = unreadable = 0
    for number, start in enumerate(range(0, len(files), shard_images)):
        path = out / f"shard_{number:05d}.npy"
        if path.exists():
            continue
        encoder = encoder or load_encoder(model, grid=grid, device=device)
        part = files[start : start + shard_images]
        rows, bad = _features(part, encoder, batch_size)
        _save(path, rows)
        written, unreadable = written + 1, unreadable + bad
        print(f"{path.name}: {len(rows)} rows of {len(part) - bad} images", file=sys.stderr)
    return {"images": len(files), "written": written, "unreadable": unreadable}


def _features(files: Sequence[Path], encoder: Encoder, batch_size: int) -> tuple[np.ndarray, int]:  # [n, D]
    parts, bad = [], 0
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), batch_size):
            images = list(pool.map(read_image, files[start : start + batch_size]))
            pixels = [to_square(image, encoder.image_size) for image in images if image is not None]
            bad += len(images) - len(pixels)
            if pixels:
                parts.append(encoder.encode(torch.stack(pixels)).flatten(0, 2).float().cpu().numpy())
    if not parts:
        raise UserError(f"images: none of {len(files)} files from {files[0]} on is readable")
    return np.concatenate(parts), bad


def to_square(image: np.ndarray, size: int) -> torch.Tensor:  # [H, W, 3] uint8 -> [3, size, size] in [0, 1]
    """The shorter side scaled to ``size``, bicubic, and the middle cut out."""
    height, width = image.shape[:2]
    scale = size / min(height, width)
    target = (max(size, round(width * scale)), max(size, round(height * scale)))
    left, top = (target[0] - size) // 2, (target[1] - size) // 2
    scaled = Image.fromarray(image).resize(target, Image.Resampling.BICUBIC)
    square = np.asarray(scaled.crop((left, top, left + size, top + size)), dtype=np.float32)
    return torch.from_numpy(square / 255).permute(2, 0, 1)


def _check_same(out: Path, run: dict[str, Any]) -> None:
    """Shards of one folder come from one model and one list of images."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "features.json"
    if path.exists() and read_object(path, "the settings of shards") != run:
        raise UserError(f"{path}: shards here come from other images or settings; choose another --out")
    partial = out / ".features.json.partial"
    partial.write_text(json.dumps(run))
    partial.replace(path)


def _save(path: Path, rows: np.ndarray) -> None:
    """Write a shard, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.save(file, rows)
    partial.replace(path)


def main(
    images: Annotated[Path, tyro.conf.Positional],
    out: Path,
    model: str = "openai/clip-vit-large-patch14",
    grid: int = 4,
    batch_size: int = 16,
    shard_images: int = 4096,
    device: str = "cpu",
) -> None:
    """Extract CLIP features of the images in a folder.

    Args:
        images: folder of images, read with everything below it.
        out: folder for shards ``[rows, features]``.
        model: folder or hub name of a CLIP model.
        grid: tokens per side of an image.
        batch_size: images encoded at a time.
        shard_images: images per shard.
        device: where the encoder runs.
    """
    done = extract(
        images, out, model=model, grid=grid, batch_size=batch_size, shard_images=shard_images, device=device
    )
    print(json.dumps(done))


if __name__ == "__main__":
    sys.exit(command.run(lambda: tyro.cli(main)))
