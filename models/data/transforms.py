"""From samples to the arrays of a batch: resize, crop, flip, the same for image, label map and every frame of a clip.

H W pixels, T frames, S crop size, V views. Resizing is pillow's bicubic, which averages where it shrinks; label maps
take the nearest value. A transform is a pure function of the sample and of the random generator it is given. Bytes
become numbers in [-1, 1] later, in the loader.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from models.data.sample import Sample

Arrays = dict[str, np.ndarray]
Transform = Callable[[Sample, np.random.Generator], Arrays | None]  # None: the image is smaller than the crop


class _Frames(NamedTuple):
    """An image is a clip of one frame here."""

    pixels: np.ndarray  # [T, H, W, 3] uint8
    labels: np.ndarray | None  # [T, H, W]

    def resized(self, shorter: int) -> _Frames:
        """With the shorter side scaled to so many pixels."""
        height, width = self.pixels.shape[1:3]
        if min(height, width) == shorter:
            return self
        scale = shorter / min(height, width)
        size = max(shorter, round(height * scale)), max(shorter, round(width * scale))
        pixels = np.stack([_resized(frame, *size) for frame in self.pixels])
        if self.labels is None:
            return _Frames(pixels, None)
        rows, columns = _nearest(height, size[0]), _nearest(width, size[1])
        return _Frames(pixels, self.labels[:, rows[:, None], columns])

    def window(self, top: int, left: int, size: tuple[int, int], mirrored: bool = False) -> _Frames:
        rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
        step = -1 if mirrored else 1
        pixels = self.pixels[:, rows, columns][:, :, ::step]
        return _Frames(pixels, None if self.labels is None else self.labels[:, rows, columns][:, :, ::step])

    def spare(self, size: tuple[int, int]) -> tuple[int, int]:
        """Places for a window of this size, less one, down and across; negative if there are none."""
        return self.pixels.shape[1] - size[0], self.pixels.shape[2] - size[1]

    def arrays(self, sample: Sample) -> Arrays:
        clip = sample.image.ndim == 4
        pixels = np.ascontiguousarray(self.pixels.transpose(0, 3, 1, 2))
        arrays = {"image": pixels if clip else pixels[0]}
        if self.labels is not None:
            labels = np.ascontiguousarray(self.labels)
            arrays["map"] = labels if clip else labels[0]
        if sample.label is not None:
            arrays["label"] = np.asarray(sample.label)
        return arrays


def _frames(sample: Sample) -> _Frames:
    if sample.image.ndim == 4:
        return _Frames(sample.image, sample.map)
    return _Frames(sample.image[None], None if sample.map is None else sample.map[None])


@dataclass(frozen=True, kw_only=True)
class Crop:
    """One crop: ``image`` [3, S, S] ([T, 3, S, S] of a clip), ``label`` [] and ``map`` [S, S] where there are any."""

    size: int | tuple[int, int]  # pixels of the crop; (height, width)
    resize: int | tuple[int, int] | None = None  # shorter side before it; (lowest, highest): drawn; None: as it is
    place: Literal["random", "center"] = "random"
    flip: bool = False  # mirrored half of the time

    def __post_init__(self) -> None:
        if min(_pair(self.size)) < 1:
            raise ValueError(f"size: expected at least 1 pixel, got {self.size}")
        if self.resize is not None:
            low, high = _pair(self.resize)
            if not min(_pair(self.size)) <= low <= high:
                raise ValueError(f"resize: expected {min(_pair(self.size))} pixels or more, got {self.resize}")

    def __call__(self, sample: Sample, random: np.random.Generator) -> Arrays | None:
        frames, size = _frames(sample), _pair(self.size)
        if self.resize is not None:
            low, high = _pair(self.resize)
            frames = frames.resized(low if low == high else int(random.integers(low, high + 1)))
        down, across = frames.spare(size)
        if min(down, across) < 0:
            return None
        if self.place == "random":
            top, left = int(random.integers(down + 1)), int(random.integers(across + 1))
        else:
            top, left = down // 2, across // 2
        mirrored = self.flip and bool(random.integers(2))
        return frames.window(top, left, size, mirrored).arrays(sample)


@dataclass(frozen=True, kw_only=True)
class TenCrop:
    """Ten views: ``image`` [10, 3, S, S], and ``label`` [] where there is one.

    Of the middle square, scaled to ``ratio`` times the crop: the four corners and the middle, then these mirrored.
    """

    size: int  # pixels of the crop
    ratio: float = 1.1  # 1.05 and 1.1 are in use

    def __post_init__(self) -> None:
        if self.size < 1 or self.ratio < 1:
            raise ValueError(f"size, ratio: expected at least 1 and 1, got {self.size} and {self.ratio}")

    def __call__(self, sample: Sample, random: np.random.Generator) -> Arrays | None:
        if sample.image.ndim != 3:
            raise ValueError(f"image: expected [H, W, 3], got {list(sample.image.shape)}")
        side = int(self.size * self.ratio)
        frames = _frames(sample._replace(map=None)).resized(side)
        down, across = frames.spare((side, side))
        square = frames.window(down // 2, across // 2, (side, side))
        far = side - self.size
        places = ((0, 0), (0, far), (far, 0), (far, far), (far // 2, far // 2))
        size = (self.size, self.size)
        views = [square.window(top, left, size, flip).pixels[0] for flip in (False, True) for top, left in places]
        arrays = {"image": np.ascontiguousarray(np.stack(views).transpose(0, 3, 1, 2))}
        return arrays if sample.label is None else arrays | {"label": np.asarray(sample.label)}


@dataclass(frozen=True, kw_only=True)
class DrawView:
    """One of the V views that codes or latents were made of: ``codes`` or ``latents``, and ``label`` if any."""

    def __call__(self, sample: Sample, random: np.random.Generator) -> Arrays | None:
        view = sample.image[int(random.integers(len(sample.image)))]
        arrays = {"latents": view} if view.dtype.kind == "f" else {"codes": view.astype(np.int64)}
        return arrays if sample.label is None else arrays | {"label": np.asarray(sample.label)}


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:  # [H, W, 3] uint8 -> [height, width, 3]
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _nearest(count: int, wanted: int) -> np.ndarray:  # [wanted] of range(count)
    """The pixel in which the middle of each new pixel lies."""
    return (2 * np.arange(wanted) + 1) * count // (2 * wanted)
