"""Image files as arrays; whatever a file holds, it is an image or it is None.

H W pixels. Does not import torch: worker processes start without it.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# pillow reports a broken file by any of these, depending on the format and on where it breaks
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def open_regular(path: Path | str | bytes) -> BinaryIO:
    """Open a file for reading; a pipe, socket or device in its place is an OSError at once and never waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{os.fsdecode(path)} is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_image(path: Path | str | bytes) -> np.ndarray | None:  # [H, W, 3] uint8
    """The image in a file, upright and in colour; None if there is none that can be decoded."""
    try:
        with open_regular(path) as file:
            return decode_image(file)
    except OSError:
        return None


def decode_image(file: BinaryIO) -> np.ndarray | None:  # [H, W, 3] uint8
    """As :func:`read_image`, of an open file."""
    try:
        with Image.open(file) as image:
            _check_size(image)
            return np.array(_eight_bits(ImageOps.exif_transpose(image)).convert("RGB"))
    except _UNREADABLE:
        return None


def read_map(path: Path | str | bytes) -> np.ndarray | None:  # [H, W] integers
    """The values of a label map, of a palette image its indices; None if there are none."""
    try:
        with open_regular(path) as file, Image.open(file) as image:
            _check_size(image)
            values = np.asarray(image)
    except _UNREADABLE:
        return None
    return values if values.ndim == 2 and values.dtype.kind in "iu" else None


def _check_size(image: Image.Image) -> None:
    """Refuse more pixels than pillow thinks honest: it warns of them and decodes them, gigabytes of them."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(f"expected at most {limit} pixels, got {image.width * image.height}")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Sixteen bits of grey scaled to eight, where pillow would clip."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("the range of the pixels is unknown")
    return image
