"""Photographs and the random crops that training sees.

B batch, H W pixels, S crop size. The crops of step t are a pure function of (seed, t, rank): a resumed run
sees what an unbroken one would have seen, and there is no sampler state to save.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from models.errors import UserError

_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# pillow reports a broken file by any of these, depending on the format and on where it breaks
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_HELD_OUT_EVERY = 10


class Photo(NamedTuple):
    """One photograph and which side of the split it is on."""

    name: str
    image: np.ndarray  # [H, W, 3] uint8
    split: str  # "train" or "val"


def load_photos(data: str) -> tuple[Photo, ...]:
    """The photographs of a config's ``data`` field: ``"embedded"``, or a folder."""
    return embedded_photos() if data == "embedded" else image_folder(Path(data))


def embedded_photos() -> tuple[Photo, ...]:
    """The colour photographs inside scikit-image and scikit-learn; two of them are held out whole."""
    from skimage import data as skimage_data
    from sklearn.datasets import load_sample_image

    def photo(name: str, load: Callable[[], np.ndarray], split: str = "train") -> Photo:
        return Photo(name, np.ascontiguousarray(load()), split)

    return (
        photo("astronaut", skimage_data.astronaut),
        photo("china", lambda: load_sample_image("china.jpg")),
        photo("coffee", skimage_data.coffee),
        photo("hubble", skimage_data.hubble_deep_field),
        photo("immunohistochemistry", skimage_data.immunohistochemistry),
        photo("motorcycle", lambda: skimage_data.stereo_motorcycle()[0]),
        photo("retina", skimage_data.retina),
        photo("rocket", skimage_data.rocket),
        photo("chelsea", skimage_data.chelsea, "val"),
        photo("flower", lambda: load_sample_image("flower.jpg"), "val"),
    )


def image_folder(path: Path | str) -> tuple[Photo, ...]:
    """Every readable image below ``path``, in name order, every tenth one (at least one) held out.

    Images are decoded once, here, and kept in memory. Files that cannot be decoded are left out, counted and
    reported in one line on stderr.
    """
    root = Path(path)
    if not root.is_dir():
        raise UserError(f"data: expected 'embedded' or a folder of images, got {str(path)!r}")
    files = image_files(root)
    with ThreadPoolExecutor() as pool:
        images = dict(zip(files, pool.map(read_image, files), strict=True))
    readable = [(str(file.relative_to(root)), image) for file, image in images.items() if image is not None]
    skipped = [str(file.relative_to(root)) for file, image in images.items() if image is None]
    if skipped:
        shown = ", ".join(skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        print(f"{root}: skipped {len(skipped)} of {len(files)} images, unreadable: {shown}", file=sys.stderr)
    if len(readable) < 2:
        raise UserError(f"data: expected at least 2 readable images below {root}, got {len(readable)}")
    held_out = set(range(_HELD_OUT_EVERY - 1, len(readable), _HELD_OUT_EVERY)) or {len(readable) - 1}
    return tuple(
        Photo(name, image, "val" if number in held_out else "train") for number, (name, image) in enumerate(readable)
    )


def image_files(root: Path) -> list[Path]:
    """Every file below a folder that is named like an image, in name order."""
    return sorted(file for file in root.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())


def read_image(file: Path) -> np.ndarray | None:  # [H, W, 3] uint8
    try:
        with Image.open(file) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except _UNREADABLE:
        return None


class RandomCrops:
    """Batches of square crops: a photograph drawn uniformly, a place in it, perhaps mirrored."""

    def __init__(
        self,
        photos: Sequence[Photo],
        *,
        size: int,
        batch_size: int,
        seed: int,
        flip: bool = False,
        rank: int = 0,
    ) -> None:
        self._images = [photo.image for photo in photos if min(photo.image.shape[:2]) >= size]
        if not self._images:
            raise UserError(f"image_size: none of {len(photos)} photographs is {size} pixels high and wide")
        self._size, self._batch_size, self._seed, self._flip, self._rank = size, batch_size, seed, flip, rank

    def batch(self, step: int) -> torch.Tensor:  # [B, 3, S, S] float32 in [-1, 1]
        random = np.random.default_rng((self._seed, step, self._rank))
        return _to_float(np.stack([self._crop(random) for _ in range(self._batch_size)]))

    def _crop(self, random: np.random.Generator) -> np.ndarray:  # [S, S, 3] uint8
        image = self._images[random.integers(len(self._images))]
        top = random.integers(image.shape[0] - self._size + 1)
        left = random.integers(image.shape[1] - self._size + 1)
        crop = image[top : top + self._size, left : left + self._size]
        return crop[:, ::-1] if self._flip and random.integers(2) else crop


def to_tensor(image: np.ndarray) -> torch.Tensor:  # [H, W, 3] uint8 -> [1, 3, H, W] float32 in [-1, 1]
    return _to_float(image[None])


def to_image(tensor: torch.Tensor) -> np.ndarray:  # [3, H, W] in [-1, 1] -> [H, W, 3] uint8
    pixels = tensor.detach().float().add(1).mul(127.5).round().clamp(0, 255).byte()
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())


def _to_float(images: np.ndarray) -> torch.Tensor:  # [B, H, W, 3] uint8 -> [B, 3, H, W] float32 in [-1, 1]
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return pixels.float().div_(127.5).sub_(1)
