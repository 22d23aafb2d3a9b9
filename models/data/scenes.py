"""Procedural street scenes: pictures with an exact label map, and clips of them, of which there is no end.

A scene is a drive down a street of its own: road with its markings, sidewalks, houses with windows, trees, traffic,
people; at noon, in fog, at night in the rain. Every frame is a pure function of (seed, frame, size).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from models.data.sample import Sample, Source, SplitName
from models.data.spec import Size, read_options
from models.data.street.classes import CLASSES
from models.data.street.dice import Dice
from models.data.street.render import Picture, render
from models.data.street.weather import NAMES
from models.data.street.world import draw_street
from models.errors import UserError

__all__ = ["CLASSES", "Picture", "SceneSource", "render"]

_VERSION = 1  # of what is drawn
_FRAMES = 1 << 12  # a scene begins at one of them
_SMALLEST = 8  # pixels per side
_KEPT, _KEPT_SIZE = 2048, 64  # drawn scenes kept in memory, and the largest side of such ones in pixels


@dataclass(frozen=True)
class SceneOptions:
    """What a spec may set."""

    length: int = 10_000  # scenes to train with
    seed: int = 0
    size: Size = (256, 256)
    frames: int = 1  # of a clip; 1: images
    stride: int = 1  # from one frame of a clip to the next


class SceneSource(Source):
    """``length`` scenes, the same for the same ``seed``; a tenth as many, others, to validate.

    Images of one frame, or clips of ``frames`` frames, each ``stride`` after the last. The label is the weather.
    """

    labels = NAMES
    map_labels = CLASSES

    def __init__(self, split: SplitName, options: str = "") -> None:
        self._options, self._split = read_options("scenes", options, SceneOptions), split
        if min(self._options.size) < _SMALLEST:
            height, width = self._options.size
            raise UserError(f"data: scenes: expected a size from {_SMALLEST} pixels on, got {height}x{width}")
        length = self._options.length
        self._length = length if split == "train" else max(1, length // 10)

    @property
    def fingerprint(self) -> str:
        told = f"scenes {_VERSION} {self._split} {self._options}"
        return hashlib.sha256(told.encode()).hexdigest()[:32]

    def __len__(self) -> int:
        return self._length

    def name(self, index: int) -> str:
        street, frame = self._place(index)
        return f"street {street} frame {frame}"

    def read(self, index: int) -> Sample:
        street, first = self._place(index)
        frames, stride, size = self._options.frames, self._options.stride, self._options.size
        draw = _kept if max(size) <= _KEPT_SIZE else render
        pictures = [draw(street, first + number * stride, size) for number in range(frames)]
        label = NAMES.index(draw_street(street).weather.name)
        if frames == 1:
            return Sample(self.name(index), pictures[0].image, label, pictures[0].map)
        images, maps = (np.stack(part) for part in zip(*pictures, strict=True))
        return Sample(self.name(index), images, label, maps)

    def _place(self, index: int) -> tuple[int, int]:
        """Street and first frame of a sample."""
        if not 0 <= index < self._length:
            raise IndexError(f"index: expected 0 to {self._length - 1}, got {index}")
        dice = Dice(self._options.seed, 0 if self._split == "train" else 1, index)
        return dice.whole(0, (1 << 48) - 1), dice.whole(0, _FRAMES - 1)


@lru_cache(maxsize=_KEPT)
def _kept(street: int, frame: int, size: Size) -> Picture:
    """A small scene takes longer to draw than to train on."""
    picture = render(street, frame, size)
    for pixels in (picture.image, picture.map):
        pixels.setflags(write=False)  # shared by everyone who asks
    return picture
