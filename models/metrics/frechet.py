"""Distances between two sets of images, or of videos, in the embedding of a network.

The scores have no name of their own here: what they may be called depends on the network and its weights. N images,
D width of the embedding, C classes, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from models.errors import UserError
from models.metrics.accumulator import Accumulator, Rows, State, Sums

_ROWS_AT_ONCE = 1024


class FrechetDistance(Sums):
    """Squared Frechet distance of the Gaussians that fit the embeddings of two sets."""

    def __init__(self, dim: int, *, correction: int = 1) -> None:
        """``correction``: covariances are divided by N minus this (FID: 1; FVD of StyleGAN-V: 0)."""
        zeros = {}
        for side in ("real", "fake"):
            zeros[f"{side}_count"] = torch.zeros((), dtype=torch.int64)
            zeros[f"{side}_sum"] = torch.zeros(dim, dtype=torch.float64)
            zeros[f"{side}_products"] = torch.zeros(dim, dim, dtype=torch.float64)
        super().__init__(**zeros)
        self._correction = correction

    def update(self, real: torch.Tensor | None, fake: torch.Tensor | None) -> None:  # [B, D]
        """Embeddings of either set, as many as there are."""
        for side, embeddings in (("real", real), ("fake", fake)):
            if embeddings is not None:
                x = embeddings.detach().cpu().double()
                self.sums[f"{side}_count"] += len(x)
                self.sums[f"{side}_sum"] += x.sum(0)
                self.sums[f"{side}_products"] += x.T @ x

    def moments(self, side: str) -> tuple[torch.Tensor, torch.Tensor]:  # [D], [D, D]
        """Mean and covariance of one side, "real" or "fake"."""
        count = int(self.sums[f"{side}_count"])
        if count <= self._correction:
            raise UserError(f"images: expected at least {self._correction + 1} for a covariance, got {count}")
        mean = self.sums[f"{side}_sum"] / count
        centred = self.sums[f"{side}_products"] - count * torch.outer(mean, mean)
        return mean, centred / (count - self._correction)

    def compute(self) -> dict[str, float]:
        return {"distance": frechet_distance(*self.moments("real"), *self.moments("fake"))}


def frechet_distance(
    mean_a: torch.Tensor,  # [D] float64
    covariance_a: torch.Tensor,  # [D, D] float64
    mean_b: torch.Tensor,  # [D] float64
    covariance_b: torch.Tensor,  # [D, D] float64
) -> float:
    """``|mean_a - mean_b|^2 + tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2``.

    With A = U U^T and B = V V^T the last trace is the sum of the singular values of U^T V: no root of a product that
    is not symmetric, and no root of rounding errors where the covariances have less than full rank.
    """
    factor_a, factor_b = _factor(covariance_a), _factor(covariance_b)  # [D, R], [D, R']
    overlap = torch.linalg.svdvals(factor_a.T @ factor_b).sum()
    trace = covariance_a.trace() + covariance_b.trace()
    return ((mean_a - mean_b).square().sum() + trace - 2 * overlap).item()


def _factor(covariance: torch.Tensor) -> torch.Tensor:  # [D, D] -> [D, R]
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


class Similarity(Rows):
    """Mean cosine of the embeddings of images and of their reconstructions."""

    def __init__(self) -> None:
        super().__init__("cosine")

    def update(self, index: torch.Tensor, real: torch.Tensor, fake: torch.Tensor) -> None:  # [B], [B, D], [B, D]
        self.append(index, cosine=torch.cosine_similarity(real.double(), fake.double(), dim=1))

    def compute(self) -> dict[str, float]:
        return {"cosine": self.mean("cosine")}


class PrecisionRecall(Accumulator):
    """Improved precision and recall (Kynkaanniemi et al., 2019): how much of each set lies near the other one.

    Keeps all embeddings: 4 D bytes an image and side.
    """

    def __init__(self, neighbours: int = 3) -> None:
        self._sides = {"real": Rows("embedding"), "fake": Rows("embedding")}
        self._neighbours = neighbours

    def update(self, index: torch.Tensor, real: torch.Tensor | None, fake: torch.Tensor | None) -> None:
        """Embeddings ``[B, D]`` of either set, as many as there are; ``index`` [B] numbers them."""
        for side, embeddings in (("real", real), ("fake", fake)):
            if embeddings is not None:
                self._sides[side].append(index, embedding=embeddings.float())

    def compute(self) -> dict[str, float]:
        real, fake = (self._sides[side].column("embedding").double() for side in ("real", "fake"))
        if min(len(real), len(fake)) <= self._neighbours:
            expected = f"more than {self._neighbours} of each set for {self._neighbours} neighbours"
            raise UserError(f"images: expected {expected}, got {len(real)} and {len(fake)}")
        return {
            "precision": _share_covered(fake, real, self._neighbours),
            "recall": _share_covered(real, fake, self._neighbours),
        }

    def state(self) -> State:
        return {f"{side}.{name}": value for side, rows in self._sides.items() for name, value in rows.state().items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        for side, rows in self._sides.items():
            rows.restore(_of_side(state, side))

    def add(self, state: Mapping[str, torch.Tensor]) -> None:
        for side, rows in self._sides.items():
            rows.add(_of_side(state, side))


def _of_side(state: Mapping[str, torch.Tensor], side: str) -> State:
    return {name.removeprefix(f"{side}."): value for name, value in state.items() if name.startswith(f"{side}.")}


def _share_covered(points: torch.Tensor, centers: torch.Tensor, neighbours: int) -> float:  # [N, D], [M, D]
    """Share of points in some ball around a center that reaches to the center's k-th neighbour."""
    radius = torch.cat(
        [
            # a center is its own nearest neighbour
            _squared_distances(part, centers).kthvalue(neighbours + 1, dim=1).values
            for part in centers.split(_ROWS_AT_ONCE)
        ]
    )
    covered = [(_squared_distances(part, centers) <= radius).any(1) for part in points.split(_ROWS_AT_ONCE)]
    return torch.cat(covered).double().mean().item()


def _squared_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:  # [N, D], [M, D] -> [N, M]
    # float64 has digits enough for the fast form
    return (a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)


class InceptionScore(Sums):
    """exp of the mean divergence of an image's classes from those of its split, of logits; mean over splits.

    Images are dealt to the splits by their numbers in turn, so that no split is of one class where they are sorted.
    """

    def __init__(self, classes: int, splits: int = 10) -> None:
        super().__init__(
            count=torch.zeros(splits, dtype=torch.int64),
            negentropy=torch.zeros(splits, dtype=torch.float64),  # sum over images of sum p log p
            probability=torch.zeros(splits, classes, dtype=torch.float64),  # sum over images
        )

    def update(self, index: torch.Tensor, logits: torch.Tensor) -> None:  # [B], [B, C]
        log_p = logits.detach().cpu().double().log_softmax(1)
        p, split = log_p.exp(), index.cpu() % len(self.sums["count"])
        self.sums["count"].index_add_(0, split, torch.ones_like(split))
        self.sums["negentropy"].index_add_(0, split, (p * log_p).sum(1))
        self.sums["probability"].index_add_(0, split, p)

    def compute(self) -> dict[str, float]:
        """``inception_score`` and its standard deviation over the splits."""
        used = self.sums["count"] > 0
        count = self.sums["count"][used].double()
        mean = self.sums["probability"][used] / count[:, None]  # [S, C]
        divergence = self.sums["negentropy"][used] / count - torch.special.xlogy(mean, mean).sum(1)
        scores = divergence.exp()
        if not len(scores):
            return {"inception_score": math.nan, "inception_score_std": math.nan}
        return {
            "inception_score": scores.mean().item(),
            "inception_score_std": scores.std(correction=0).item(),
        }
