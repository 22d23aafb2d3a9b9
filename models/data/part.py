"""Some samples of a source, and several views of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.data.sample import Sample, Source
from models.data.transforms import Arrays, TenCrop, Transform


class Part(Source):
    """The samples of a source at these positions, in order; ``index`` of a batch counts within the part."""

    drawn = False

    def __init__(self, source: Source, positions: Sequence[int]) -> None:
        self._source, self._positions = source, positions
        self.labels, self.map_labels = source.labels, source.map_labels

    @property
    def fingerprint(self) -> str:
        return f"{self._source.fingerprint} {self._positions}"

    def __len__(self) -> int:
        return len(self._positions)

    def name(self, index: int) -> str:
        return self._source.name(self._positions[index])

    def read(self, index: int) -> Sample | None:
        return self._source.read(self._positions[index])


@dataclass(frozen=True, kw_only=True)
class OneView:
    """What a transform makes of a sample, as its only view: ``image`` [1, ...]."""

    transform: Transform

    def __call__(self, sample: Sample, random: np.random.Generator) -> Arrays | None:
        arrays = self.transform(sample, random)
        return None if arrays is None else {**arrays, "image": arrays["image"][None]}


@dataclass(frozen=True, kw_only=True)
class Mirrored:
    """A view and its mirror image: ``image`` [2, 3, S, S]."""

    transform: Transform  # gives one view

    def __call__(self, sample: Sample, random: np.random.Generator) -> Arrays | None:
        arrays = self.transform(sample, random)
        if arrays is None:
            return None
        image = arrays["image"]
        return {**arrays, "image": np.ascontiguousarray(np.stack([image, image[..., ::-1]]))}


@dataclass(frozen=True, kw_only=True)
class TenCrops:
    """Ten crops at each of several ratios: ``image`` [10 R, 3, S, S] (SEMANTICIST: 1.05 and 1.1)."""

    size: int  # pixels of a crop
    ratios: tuple[float, ...]  # of the middle square's side to the crop's

    def __call__(self, sample: Sample, random: np.random.Generator) -> Arrays | None:
        parts = [TenCrop(size=self.size, ratio=ratio)(sample, random) for ratio in self.ratios]
        return {**parts[0], "image": np.concatenate([part["image"] for part in parts if part is not None])}
