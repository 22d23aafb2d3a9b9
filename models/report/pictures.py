"""Pictures for the page: embedded as data URIs, and the detail worth magnifying."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

_LARGEST = 1600  # pixels per side on the page
CROP = 72  # side of a magnified detail, in pixels of the photo


class Box(NamedTuple):
    """A rectangle in a photo, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, pixels: np.ndarray) -> np.ndarray:  # [H, W, 3] -> [height, width, 3]
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]


def load_picture(path: Path) -> np.ndarray:  # [H, W, 3] uint8
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def data_uri(pixels: np.ndarray, *, lossless: bool = False) -> str:
    """Encode ``[H, W, 3]`` uint8 as a WebP data URI, made smaller if it is very large.

    Lossy means a quality at which the codec's own blocks do not show.
    """
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels)
    picture.thumbnail((_LARGEST, _LARGEST))
    picture.save(buffer, "WEBP", lossless=lossless, quality=90, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def telling_box(original: np.ndarray, reconstructions: Sequence[np.ndarray], side: int) -> Box:
    """The square of a photo in which its edges are strong and its reconstructions disagree.

    With fewer than two reconstructions edges alone decide.
    """
    detail = np.hypot(*np.gradient(original.mean(axis=2)))
    if len(reconstructions) > 1:
        detail *= np.stack([picture.mean(axis=2) for picture in reconstructions]).std(axis=0)
    height, width = min(side, detail.shape[0]), min(side, detail.shape[1])
    # sums over every square at once, from differences of the running sum
    running = np.pad(detail.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    rows = running[height:] - running[:-height]
    sums = rows[:, width:] - rows[:, :-width]
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    return Box(int(top), int(left), height, width)
