"""Sums of rows of any magnitudes, in integers: rows are summed with others that are nearly as large.

A grid coarse enough for the largest row may have no room for the others. So magnitudes are divided into bands,
each with a grid of its own, on which every row keeps the digits that a float32 mean can show. Ordinary data are one
band. Which bands there are is known before the first sum, and a row is in the same one in every pass.
"""

from __future__ import annotations

import torch

from vqkernels._core.powers import HIGHEST, LOWEST, exponent_above
from vqkernels.ops.code_stats import CodeStats, code_stats

_DIGITS = 24  # bits that an entry keeps at least, relative to the largest of its row


def magnitudes(x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:  # [n, D], [n] -> [n] float64
    """The largest entry of each row, by its weight."""
    wide = torch.promote_types(x.dtype, torch.float32)
    largest: torch.Tensor = torch.linalg.vector_norm(x, ord=torch.inf, dim=1, dtype=wide).double()
    return largest if weight is None else largest * weight


def places_of(magnitude: torch.Tensor) -> torch.Tensor:  # [n] float64 -> [places] int64
    """Which exponents there are: 1, else 0; those of several tensors combine by their maximum."""
    return torch.bincount(exponent_above(magnitude) - LOWEST, minlength=HIGHEST - LOWEST + 1).clamp(max=1)


class Bands:
    """The bands of all rows of all processes."""

    def __init__(self, places: torch.Tensor, vectors: int) -> None:  # [places]
        self.vectors = vectors
        # so many bits has the integer of an entry
        width = max(1, min(62 - max(vectors - 1, 0).bit_length(), 51) - _DIGITS)
        self.tops: list[int] = []  # exponents above, falling
        for exponent in (places.nonzero()[:, 0] + LOWEST).flip(0).tolist():
            # zeros and the like have the lowest exponent, and need no band
            if not self.tops or LOWEST < exponent <= self.tops[-1] - width:
                self.tops.append(exponent)
        self.tops = self.tops or [LOWEST]

    def __len__(self) -> int:
        return len(self.tops)

    def zeros(self, num_clusters: int, dim: int, device: torch.device) -> torch.Tensor:  # [bands, K, D] int64
        return torch.zeros(len(self), num_clusters, dim, dtype=torch.int64, device=device)

    def add_(
        self,
        count: torch.Tensor,  # [K] int64, in place: rows
        total: torch.Tensor,  # [bands, K, D] int64, in place
        x: torch.Tensor,  # [n, D]
        indices: torch.Tensor,  # [n], -1: nowhere
        weight: torch.Tensor | None,  # [n]
        *,
        sign: int,
        backend: str | None,
    ) -> None:
        """Add rows to the sums of their clusters, or with sign -1 take them out."""
        band = self._of(magnitudes(x, weight)) if len(self) > 1 else None
        for number, of_band in enumerate(total):
            part = indices if band is None else torch.where(band == number, indices, -1)
            within = self._within(number, of_band)
            stats = code_stats(x, part, len(of_band), weight=weight, within=within, backend=backend)
            of_band.add_(stats.total, alpha=sign)
            if weight is None:
                count.add_(stats.count, alpha=sign)

    def rounded(self, total: torch.Tensor) -> torch.Tensor:  # [bands, K, D] -> [K, D] float64
        """The sums that the integers stand for."""
        exact = torch.zeros_like(total[0], dtype=torch.float64)
        nothing = torch.zeros_like(total[0, :, 0])
        for number in reversed(range(len(self))):
            sums = CodeStats(nothing, total[number])
            exact += sums.rounded(self._within(number, total[number]), dtype=torch.float64).total
        return exact

    def _of(self, magnitude: torch.Tensor) -> torch.Tensor:  # [n] -> [n]
        tops = torch.tensor(self.tops, device=magnitude.device)
        return (exponent_above(magnitude)[:, None] <= tops).sum(dim=1) - 1

    def _within(self, number: int, of_band: torch.Tensor) -> torch.Tensor:  # [K, D] -> [K, 4]
        # the second number is for the sums of weights, which nobody asks for
        within = torch.tensor([self.tops[number], HIGHEST, self.vectors, 0], device=of_band.device)
        return within.expand(len(of_band), -1)
