"""Chance that is a function: of a place in an order, of a key. Nothing is stored, nothing has to be drawn before."""

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


def hashed(*key: int) -> int:
    """64 bits that look like chance, the same for the same key, on every machine and in every version."""
    state = 0
    for part in key:
        state = mix64((state + 0x9E3779B97F4A7C15 & _MASK64) ^ part & _MASK64)
    return state


class KeyedRandom:
    """A numpy generator that starts anew for every key: Philox is made for this, and needs no warming up."""

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)
        self._fresh = self._bits.state  # nothing drawn yet
        self._generator = np.random.Generator(self._bits)

    def at(self, *key: int) -> np.random.Generator:
        """Draws for one key, until the next key is asked for."""
        self._fresh["state"]["key"][:] = hashed(*key, 0), hashed(*key, 1)
        self._bits.state = self._fresh
        return self._generator


def mix64(value: int) -> int:
    """Every bit of 64 changes about half of all bits (the finalizer of splitmix64)."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK64
    return value ^ value >> 31
