"""The colour photographs that scikit-image and scikit-learn bring along; two of them are held out whole.

The files are read where the packages lie, without importing them.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from models.data.images import read_image
from models.data.sample import Sample, Source, SplitName
from models.errors import UserError

_SKIMAGE, _SKLEARN = ("skimage", "data"), ("sklearn", "datasets/images")
_PHOTOS = {
    "train": {
        "astronaut": (*_SKIMAGE, "astronaut.png"),
        "china": (*_SKLEARN, "china.jpg"),
        "coffee": (*_SKIMAGE, "coffee.png"),
        "hubble": (*_SKIMAGE, "hubble_deep_field.jpg"),
        "immunohistochemistry": (*_SKIMAGE, "ihc.png"),
        "motorcycle": (*_SKIMAGE, "motorcycle_left.png"),
        "retina": (*_SKIMAGE, "retina.jpg"),
        "rocket": (*_SKIMAGE, "rocket.jpg"),
    },
    "val": {
        "chelsea": (*_SKIMAGE, "chelsea.png"),
        "flower": (*_SKLEARN, "flower.jpg"),
    },
}


class EmbeddedSource(Source):
    """The photographs of one side, in memory once they are read."""

    drawn = True

    def __init__(self, split: SplitName) -> None:
        self._photos = _PHOTOS[split]
        self._names = tuple(self._photos)

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for place in self._photos.values():
            digest.update(_photo(*place).tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def read(self, index: int) -> Sample:
        name = self._names[index]
        return Sample(name, _photo(*self._photos[name]))


@cache
def _photo(package: str, folder: str, file: str) -> np.ndarray:  # [H, W, 3] uint8
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"data: the embedded photographs need the package {package}, which is not installed")
    path = Path(spec.origin).parent / folder / file
    image = read_image(path)
    if image is None:
        raise UserError(f"data: expected an embedded photograph at {path}, got no readable image")
    image.setflags(write=False)  # shared by everyone who asks
    return image
