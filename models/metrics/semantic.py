"""Whether codes mean something: how codes and classes go together (SGC-VQGAN's tables).

A code belongs to the class whose pixels it stands for most often. B batch, H W pixels, h w grid, f pixels per side of
a token, K codes, C classes, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from models.metrics.accumulator import Sums

TAUS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def cell_class_counts(maps: torch.Tensor, cell: int, classes: int) -> torch.Tensor:  # [B, H, W] -> [B, h, w, C]
    """Pixels of every class in the cell of every token; -1 and other values that are no class are left out."""
    batch, height, width = maps.shape
    if height % cell or width % cell:
        raise ValueError(f"maps: expected multiples of {cell} pixels, got {height}x{width}")
    rows, columns = height // cell, width // cell
    pixels = maps.reshape(batch, rows, cell, columns, cell).transpose(2, 3).flatten(3)  # [B, h, w, f * f]
    known = (pixels >= 0) & (pixels < classes)
    counts = torch.zeros(batch, rows, columns, classes + 1, dtype=torch.int64, device=maps.device)
    # what is no class is counted in a column of its own
    counts.scatter_add_(3, torch.where(known, pixels, classes).long(), torch.ones_like(pixels, dtype=torch.int64))
    return counts[..., :classes]


def majority_labels(counts: torch.Tensor) -> torch.Tensor:  # [..., C] -> [...] int64
    """The most frequent class, of several the first; -1 where there is none."""
    return torch.where(counts.sum(-1) > 0, counts.argmax(-1), -1)


class CodeClasses(Sums):
    """How often every code stands for every class, and what follows from it."""

    def __init__(self, num_codes: int, classes: int) -> None:
        super().__init__(counts=torch.zeros(num_codes, classes, dtype=torch.int64))

    @property
    def counts(self) -> torch.Tensor:  # [K, C] int64
        return self.sums["counts"]

    def update(self, indices: torch.Tensor, counts: torch.Tensor) -> None:  # [...], [..., C]
        """Tokens, and the pixels of each class in the cell of each token (or a one for the class of the token)."""
        self.counts.index_add_(0, indices.reshape(-1).cpu(), counts.reshape(-1, self.counts.shape[1]).cpu())

    @property
    def dominant(self) -> torch.Tensor:  # [K] int64
        """The class of every code, -1 for a code that never stood for one."""
        return majority_labels(self.counts)

    def compute(self) -> dict[str, float]:
        """``uniqueness_0.1`` and so on, and the share of codes that have a class."""
        scores = {f"uniqueness_{tau}": value for tau, value in zip(TAUS, uniqueness(self.counts), strict=True)}
        return {"classified_codes": (self.counts.sum(1) > 0).double().mean().item(), **scores}


def uniqueness(counts: torch.Tensor, taus: Sequence[float] = TAUS) -> list[float]:  # [K, C]
    """Share of all codes, unused ones included, with more than a share tau of their pixels in one class."""
    total = counts.sum(1).double()
    share = torch.where(total > 0, counts.max(1).values / total, 0.0)
    return [(share > tau).double().mean().item() for tau in taus]


def cluster_scores(codes: torch.Tensor, dominant: torch.Tensor) -> dict[str, float]:  # [K, D], [K]
    """Mean silhouette and Davies-Bouldin index of codes, their classes taken as clusters.

    Codes without a class are left out. Both are NaN unless there are at least two classes and fewer than codes.
    """
    from sklearn.metrics import davies_bouldin_score, silhouette_score

    used = dominant >= 0
    vectors, labels = codes[used].detach().double().cpu().numpy(), dominant[used].cpu().numpy()
    if not 2 <= len(np.unique(labels)) < len(labels):
        return {"silhouette": math.nan, "davies_bouldin": math.nan}
    return {
        "silhouette": float(silhouette_score(vectors, labels)),
        "davies_bouldin": float(davies_bouldin_score(vectors, labels)),
    }
