"""How well counting predicts codes: the bars that a prior has to clear.

Counts of single codes and of pairs of neighbours in raster order, smoothed as Witten and Bell do: a context gives
the share T / (n + T) of its probability to the simpler model, n being how often it was seen and T with how many
different successors. So held-out codes are scored as a prior is, in nats, with nothing to tune.
S samples, L positions in raster order, K codes.
"""

from __future__ import annotations

import numpy as np


class NeighbourCounts:
    """Unigram and bigram model of the codes of one group."""

    def __init__(self, codes: np.ndarray, num_codes: int) -> None:  # [S, L]
        self.num_codes = num_codes
        counts = np.bincount(codes.reshape(-1), minlength=num_codes)  # [K]
        self.unigram = _backed_off(counts, counts.sum(), np.count_nonzero(counts), 1 / num_codes)  # [K]
        pairs, self._count = np.unique(_pairs(codes, num_codes), return_counts=True)
        self._pairs = pairs
        before = pairs // num_codes
        self._seen = np.bincount(before, self._count, minlength=num_codes)  # [K], as a context
        self._successors = np.bincount(before, minlength=num_codes)  # [K]

    def unigram_nll(self, codes: np.ndarray) -> float:  # [S, L]
        """Mean nats per code, from its frequency alone."""
        return float(-np.log(self.unigram[codes]).mean())

    def bigram_nll(self, codes: np.ndarray) -> float:  # [S, L]
        """Mean nats per code, from the code before it; the first of a sample from its frequency."""
        pairs = _pairs(codes, self.num_codes)
        before, after = pairs // self.num_codes, pairs % self.num_codes
        count = np.zeros(len(pairs))
        if len(self._pairs):
            place = np.searchsorted(self._pairs, pairs).clip(max=len(self._pairs) - 1)
            count = np.where(self._pairs[place] == pairs, self._count[place], 0)
        known = self._seen[before] > 0  # a context never seen says nothing
        smoothed = _backed_off(count, self._seen[before], self._successors[before], self.unigram[after], known)
        nats = -np.log(np.where(known, smoothed, self.unigram[after])).sum() - np.log(self.unigram[codes[:, 0]]).sum()
        return float(nats / codes.size)


def _pairs(codes: np.ndarray, num_codes: int) -> np.ndarray:  # [S (L - 1)]
    """Each code with the one before it, as one number."""
    return (codes[:, :-1].astype(np.int64) * num_codes + codes[:, 1:]).reshape(-1)


def _backed_off(
    count: np.ndarray,
    seen: np.ndarray | float,
    kinds: np.ndarray | float,
    simpler: np.ndarray | float,
    known: np.ndarray | bool = True,
) -> np.ndarray:
    return (count + kinds * simpler) / np.where(known, seen + kinds, 1)
