"""The 196,560 shortest vectors of the Leech lattice, a codebook that nobody has to learn."""

from __future__ import annotations

import itertools

import numpy as np
import torch

_LENGTH = 24
# the quadratic residues modulo 23: with their complement and a parity bit they generate the binary Golay code
_RESIDUES = {i * i % 23 for i in range(1, 23)}


def golay_code() -> np.ndarray:  # [4096, 24] of 0 and 1
    """All words of the extended binary Golay code."""
    # the idempotent: ones where an exponent is no residue; its shifts span the code of length 23
    idempotent = np.array([i not in _RESIDUES and i != 0 for i in range(_LENGTH - 1)], dtype=np.int8)
    words = np.zeros((1, _LENGTH - 1), dtype=np.int8)
    for shift in range(_LENGTH - 1):
        row = np.roll(idempotent, shift)
        if not (words == row).all(axis=1).any():
            words = np.concatenate([words, words ^ row])
    return np.concatenate([words, words.sum(axis=1, keepdims=True) % 2], axis=1)


def leech_vectors() -> np.ndarray:  # [196560, 24] int8
    """The shortest vectors, scaled to integers: all of squared length 32."""
    code = golay_code()
    pairs = []
    for i, j in itertools.combinations(range(_LENGTH), 2):
        for signs in itertools.product((4, -4), repeat=2):
            pair = np.zeros(_LENGTH, dtype=np.int8)
            pair[[i, j]] = signs
            pairs.append(pair)
    # eight entries of 2 on a word of weight 8, an even number of them negative
    signs = np.array([s for s in itertools.product((1, -1), repeat=8) if np.prod(s) == 1], dtype=np.int8)
    eights = []
    for word in code[code.sum(axis=1) == 8]:
        vectors = np.zeros((len(signs), _LENGTH), dtype=np.int8)
        vectors[:, word == 1] = 2 * signs
        eights.append(vectors)
    # ones but for a -3 anywhere, negated on any word
    spikes = np.ones((_LENGTH, _LENGTH), dtype=np.int8) - 4 * np.eye(_LENGTH, dtype=np.int8)
    odd = ((1 - 2 * code)[:, None] * spikes).reshape(-1, _LENGTH)
    return np.concatenate([np.stack(pairs), *eights, odd])


def leech_codebook() -> torch.Tensor:  # [196560, 24]
    """The same on the unit sphere."""
    return torch.from_numpy(leech_vectors().astype(np.float64) / np.sqrt(32.0)).float()
