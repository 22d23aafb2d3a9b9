"""Whole photographs in memory, for the demo and its scores. H W pixels."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.data.embedded import EmbeddedSource
from models.data.images import SUFFIXES, read_image
from models.data.pixels import to_image, to_tensor
from models.data.sample import split_of
from models.errors import UserError

__all__ = ["Photo", "embedded_photos", "image_files", "image_folder", "load_photos", "read_image"]
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
