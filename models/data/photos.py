"""Photographs in memory and the random crops that training sees.

B batch, H W pixels, S crop size. The crops of step t are a pure function of (seed, t, rank): a resumed run
sees what an unbroken one would have seen, and there is no sampler state to save.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from models.data.embedded import EmbeddedSource
from models.data.images import SUFFIXES, read_image
from models.data.pixels import to_float, to_image, to_tensor
from models.data.sample import split_of
from models.errors import UserError

__all__ = ["Photo", "RandomCrops", "embedded_photos", "image_files", "image_folder", "load_photos", "read_image"]
__all__ += ["to_image", "to_tensor"]


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
    train, val = EmbeddedSource("train"), EmbeddedSource("val")
    samples = [
        (source.read(index), split)
        for source, split in ((train, "train"), (val, "val"))
        for index in range(len(source))
    ]
    return tuple(Photo(sample.name, sample.image, split) for sample, split in samples)


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
    held_out = set(split_of(len(readable), "val"))
    return tuple(
        Photo(name, image, "val" if number in held_out else "train") for number, (name, image) in enumerate(readable)
    )


def image_files(root: Path) -> list[Path]:
    """Every file below a folder that is named like an image, in name order."""
    return sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


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
        crops = np.stack([self._crop(random) for _ in range(self._batch_size)])
        return to_float(torch.from_numpy(np.ascontiguousarray(crops.transpose(0, 3, 1, 2))))

    def _crop(self, random: np.random.Generator) -> np.ndarray:  # [S, S, 3] uint8
        image = self._images[random.integers(len(self._images))]
        top = random.integers(image.shape[0] - self._size + 1)
        left = random.integers(image.shape[1] - self._size + 1)
        crop = image[top : top + self._size, left : left + self._size]
        return crop[:, ::-1] if self._flip and random.integers(2) else crop
