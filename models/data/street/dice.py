"""Chance that depends on nothing but a key: the same street every time, on every machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

import numpy as np

from models.data.permutation import KeyedRandom, hashed, mix64

T = TypeVar("T")
NOISE_SIZE = 256


class Dice:
    """A sequence of draws; each key has its own."""

    def __init__(self, *key: int) -> None:
        self._state = hashed(*key)

    def unit(self) -> float:
        """In [0, 1)."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & (1 << 64) - 1
        return (mix64(self._state) >> 11) / (1 << 53)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def whole(self, low: int, high: int) -> int:
        """From ``low`` to ``high``, both included."""
        return low + int(self.unit() * (high - low + 1))

    def one_of(self, options: Sequence[T]) -> T:
        return options[int(self.unit() * len(options))]

    def happens(self, probability: float) -> bool:
        return self.unit() < probability


@cache
def noise(octaves: int, seed: int) -> np.ndarray:  # [256, 256] float32, mean 0, deviation 1
    """Smooth noise that repeats without a seam; more octaves are finer."""
    total = np.zeros((NOISE_SIZE, NOISE_SIZE))
    for octave in range(octaves):
        cells = 4 << octave
        grid = KeyedRandom().at(seed, octave).random((cells, cells))
        total += _enlarged(grid - 0.5, NOISE_SIZE // cells) / 1.7**octave
    total -= total.mean()
    return (total / total.std()).astype(np.float32)


@cache
def speckle(seed: int) -> np.ndarray:  # [256, 256] float32 in [0, 1)
    """Every value by itself."""
    return KeyedRandom().at(seed).random((NOISE_SIZE, NOISE_SIZE), np.float32)


def _enlarged(grid: np.ndarray, factor: int) -> np.ndarray:
    """By cubic-like interpolation in both directions; the edges meet."""
    place = (np.arange(factor) + 0.5) / factor
    weight = 0.5 - 0.5 * np.cos(math.pi * place)  # smooth from one value to the next
    for _ in range(2):
        following = np.roll(grid, -1, axis=0)
        grid = grid[:, None] * (1 - weight)[None, :, None] + following[:, None] * weight[None, :, None]
        grid = grid.reshape(-1, grid.shape[-1]).T
    return grid


def sample(texture: np.ndarray, u: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """Values of a repeating texture at ``u`` and ``v`` metres, ``scale`` texels per metre; nearest."""
    mask = NOISE_SIZE - 1
    row, column = (v * scale).astype(np.int32), (u * scale).astype(np.int32)
    return np.take(texture.reshape(-1), (row & mask) * NOISE_SIZE + (column & mask))


def modulo(value: np.ndarray, period: float) -> np.ndarray:
    """``value % period``, several times faster."""
    share = value * np.float32(1 / period)
    share -= np.floor(share)
    share *= np.float32(period)
    return share
