"""Batches as arrays: a pure function of (seed, step, rank). What the loader and its worker processes both run.

Sample position p = (step - 1) * batch * world + rank * batch + i; epoch p // N has a permutation of its own, and
what is random in the transform of p is drawn from (seed, p). So one process and two see the same images per step at
the same global batch. Does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from models.data.permutation import KeyedRandom, Permutation, hashed
from models.data.sample import Source
from models.data.transforms import Arrays, Transform
from models.errors import UserError

_TRIES = 1000  # samples in a row that may be unusable
# what a seed is for, so that no two draws share their numbers
_EPOCH, _DRAW, _TRANSFORM = 0, 1, 2


class Skipped(NamedTuple):
    """A sample that was not used."""

    number: int  # in the source
    name: str
    reason: str


class RawBatch(NamedTuple):
    """One process's share of a step."""

    arrays: Arrays  # each [B, ...]; "index" [B] int64; empty if nothing is left
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, kw_only=True)
class Batches:
    """All batches of a training, or with ``shuffle=False`` of one pass in order."""

    source: Source
    transform: Transform
    batch_size: int  # of one process
    seed: int
    rank: int
    world: int
    shuffle: bool
    _epochs: dict[int, Permutation] = field(default_factory=dict, repr=False)  # the one in use
    _random: KeyedRandom = field(default_factory=KeyedRandom, repr=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {self.batch_size}")
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank: expected 0 to {self.world - 1}, got {self.rank}")
        if len(self.source) < 1:
            raise UserError("data: expected at least one sample, got none")

    @property
    def last_step(self) -> int | None:
        """None: there is always another."""
        return None if self.shuffle else -(-len(self.source) // (self.batch_size * self.world))

    def batch(self, step: int) -> RawBatch:
        """The batch of one step, the first is 1.

        A sample that cannot be used gives its place to the next one, in a pass in order to none.
        """
        if step < 1:
            raise ValueError(f"step: expected 1 or more, got {step}")
        first = ((step - 1) * self.world + self.rank) * self.batch_size
        samples, skipped = list[Arrays](), list[Skipped]()
        for position in range(first, first + self.batch_size):
            if self.shuffle:
                samples.append(self._sample(position, skipped))
            elif position < len(self.source):
                arrays = self._arrays(position, position, skipped)
                samples += [] if arrays is None else [arrays]
        return RawBatch(_stack(samples), tuple(skipped))

    def _sample(self, position: int, skipped: list[Skipped]) -> Arrays:
        count = len(self.source)
        start = self._index(position)
        for offset in range(min(count, _TRIES)):
            arrays = self._arrays((start + offset) % count, position, skipped)
            if arrays is not None:
                return arrays
        last = skipped[-1]
        tried = min(count, _TRIES)
        raise UserError(f"data: none of {tried} samples can be used, the last is {last.name} ({last.reason})")

    def _index(self, position: int) -> int:
        count = len(self.source)
        if self.source.drawn:
            return hashed(self.seed, position, _DRAW) % count
        epoch, place = divmod(position, count)
        if epoch not in self._epochs:
            self._epochs.clear()
            self._epochs[epoch] = Permutation(count, (self.seed, epoch, _EPOCH))
        return self._epochs[epoch][place]

    def _arrays(self, index: int, position: int, skipped: list[Skipped]) -> Arrays | None:
        sample = self.source.read(index)
        if sample is None:
            skipped.append(Skipped(index, self.source.name(index), "unreadable"))
            return None
        arrays = self.transform(sample, self._random.at(self.seed, position, _TRANSFORM))
        if arrays is None:
            shape = " x ".join(map(str, sample.image.shape[-3:-1]))
            skipped.append(Skipped(index, sample.name, f"{shape} pixels, smaller than the crop"))
            return None
        return {**arrays, "index": np.asarray(index)}


def _stack(samples: list[Arrays]) -> Arrays:
    """Arrays ``[B, ...]``; samples must agree in what they have and in its shape."""
    if not samples:
        return {}
    for sample in samples[1:]:
        if sample.keys() != samples[0].keys():
            raise UserError(f"data: samples of one batch have {sorted(samples[0])} and {sorted(sample)}")
    try:
        return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
    except ValueError as error:
        shapes = [{key: value.shape for key, value in sample.items()} for sample in samples]
        different = next(shape for shape in shapes if shape != shapes[0])
        raise UserError(f"data: samples of one batch have the shapes {shapes[0]} and {different}") from error
