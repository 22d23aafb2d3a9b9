"""A random order of a million things without a list of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_ROUNDS = 6
_MASK64 = (1 << 64) - 1


class Permutation:
    """A seeded permutation of ``range(count)``, one value at a time.

    A Feistel network permutes the next power of four; values beyond the count are sent through it again until they
    fall below, which leaves a permutation of what is below.
    """

    def __init__(self, count: int, seed: Sequence[int]) -> None:
        self._count = count
        self._half = max(1, ((count - 1).bit_length() + 1) // 2)  # bits
        self._keys = np.random.SeedSequence(tuple(seed)).generate_state(_ROUNDS, np.uint64).tolist()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: int) -> int:
        if not 0 <= position < self._count:
            raise IndexError(f"position: expected 0 to {self._count - 1}, got {position}")
        value = self._network(position)
        while value >= self._count:
            value = self._network(value)
        return value

    def _network(self, value: int) -> int:
        mask = (1 << self._half) - 1
        left, right = value >> self._half, value & mask
        for key in self._keys:
            left, right = right, left ^ (mix64(right ^ key) & mask)
        return left << self._half | right


def mix64(value: int) -> int:
    """Every bit of 64 changes about half of all bits (the finalizer of splitmix64)."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK64
    return value ^ value >> 31
