"""Losses that make codes of one class alike and codes of different classes different (SGC-VQGAN and its ablation).

All take vectors, one or more class vectors a class, and the class of every vector, -1 for none; they give the mean
over the vectors that have a class, 0 if none has. N vectors, D dimensions, C classes, R centres a class, L levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F


def cosface(
    vectors: torch.Tensor,  # [N, D]
    class_vectors: torch.Tensor,  # [C, D]
    labels: torch.Tensor,  # [N] int64
    *,
    scale: float = 30.0,
    margin: float = 0.35,
) -> torch.Tensor:  # []
    """Softmax of ``scale`` times the cosines, that of the right class lowered by ``margin`` (Wang et al., 2018)."""
    cosine = F.normalize(vectors, dim=1) @ F.normalize(class_vectors, dim=1).T  # [N, C]
    return _cross_entropy(scale * (cosine - margin * _one_hot(labels, cosine)), labels)


def l_softmax(
    vectors: torch.Tensor,  # [N, D]
    class_vectors: torch.Tensor,  # [C, D]
    labels: torch.Tensor,  # [N] int64
    *,
    margin: int = 4,
    blend: float = 0.0,
) -> torch.Tensor:  # []
    """Softmax of products, the angle to the right class multiplied by ``margin`` (Liu et al., 2016).

    ``blend`` mixes that many parts of the plain angle in: see :func:`annealed_blend`.
    """
    product = vectors @ class_vectors.T  # [N, C]
    size = vectors.norm(dim=1, keepdim=True) * class_vectors.norm(dim=1)  # [N, C]
    return _angular(product, size, labels, margin, blend)


def sphereface(
    vectors: torch.Tensor,  # [N, D]
    class_vectors: torch.Tensor,  # [C, D]
    labels: torch.Tensor,  # [N] int64
    *,
    margin: int = 4,
    blend: float = 0.0,
) -> torch.Tensor:  # []
    """:func:`l_softmax` with class vectors of unit length (Liu et al., 2017)."""
    return l_softmax(vectors, F.normalize(class_vectors, dim=1), labels, margin=margin, blend=blend)


def soft_triple(
    vectors: torch.Tensor,  # [N, D]
    centers: torch.Tensor,  # [C, R, D]
    labels: torch.Tensor,  # [N] int64
    *,
    scale: float = 20.0,
    gamma: float = 0.1,
    margin: float = 0.01,
    merge: float = 0.2,
) -> torch.Tensor:  # []
    """Softmax of similarities to classes of several centres each, and centres pulled together (Qian et al., 2019).

    The similarity to a class is the mean of those to its centres, weighted by their softmax at temperature ``gamma``.
    ``merge`` weighs the mean distance of a class's centres, so that it keeps no more of them than it needs.
    """
    centers = F.normalize(centers, dim=2)
    each = torch.einsum("nd,crd->ncr", F.normalize(vectors, dim=1), centers)  # [N, C, R]
    similarity = ((each / gamma).softmax(2) * each).sum(2)  # [N, C]
    loss = _cross_entropy(scale * (similarity - margin * _one_hot(labels, similarity)), labels)
    count, merged = centers.shape[1], loss.new_zeros(())
    if merge and count > 1:
        above = torch.ones(count, count, dtype=torch.bool, device=centers.device).triu(1)
        cosine = (centers @ centers.mT)[:, above]  # [C, R * (R - 1) / 2]
        # the published sum over pairs, each once, is divided by twice their number; 1e-5 keeps the root smooth
        merged = (2 + 1e-5 - 2 * cosine).sqrt().sum() / (len(centers) * count * (count - 1))
    return loss + merge * merged


def proxy_nca(
    vectors: torch.Tensor,  # [N, D]
    proxies: torch.Tensor,  # [C, D]
    labels: torch.Tensor,  # [N] int64
    *,
    scale: float = 1.0,
    exclude_target: bool = False,
) -> torch.Tensor:  # []
    """Softmax of minus ``scale`` times the squared distances of unit vectors (Movshovitz-Attias et al., 2017).

    As published, the right class is left out of the denominator (``exclude_target``): that has no bound below.
    """
    distance = 2 - 2 * F.normalize(vectors, dim=1) @ F.normalize(proxies, dim=1).T  # [N, C]
    logits = -scale * distance
    if not exclude_target:
        return _cross_entropy(logits, labels)
    right = _one_hot(labels, logits)
    others = logits.masked_fill(right.bool(), -math.inf).logsumexp(1)
    return _mean_labelled(others - (logits * right).sum(1), labels)


def annealed_blend(
    step: int, *, start: float = 1000.0, rate: float = 0.12, power: float = 1.0, end: float = 5.0
) -> float:
    """Parts of the plain angle at a step, ``start / (1 + rate * step) ^ power`` and at least ``end`` (SphereFace)."""
    return max(end, start / (1 + rate * step) ** power)


def level_weights(
    levels: int, family: Literal["linear", "power", "geometric"] = "linear", power: float = 2.0
) -> tuple[float, ...]:  # [L]
    """SGC-VQGAN's Eq. 10: how semantic each level is, falling from the first to 0 for the last, with sum 1.

    ``"linear"`` falls by equal steps, ``"power"`` is its ``power``-th power, ``"geometric"`` about halves every time.
    """
    if levels < 2:
        raise ValueError(f"levels: expected at least 2, got {levels}")
    below = range(levels - 1, -1, -1)  # levels below each
    raw = {
        "linear": [float(n) for n in below],
        "power": [float(n) ** power for n in below],
        "geometric": [2.0**n - 1 for n in below],
    }
    if family not in raw:
        raise ValueError(f"family: expected one of {sorted(raw)}, got {family!r}")
    if family == "power" and not power > 0:
        raise ValueError(f"power: expected more than 0, got {power}")
    total = sum(raw[family])
    return tuple(value / total for value in raw[family])


def high_levels(weights: tuple[float, ...], sigma: float = 0.5) -> int:
    """Levels that count as semantic: those of weight ``sigma`` or more, the first ones."""
    return sum(weight >= sigma for weight in weights)


@dataclass(frozen=True, kw_only=True)
class SemanticLossConfig:
    """SGC-VQGAN's consistent semantic learning; options of other losses than ``loss`` are not looked at."""

    loss: Literal["cosface", "l_softmax", "sphereface", "soft_triple", "proxy_nca"] = "cosface"  # on codes
    levels: int = 4  # equal slices of a code, the most semantic first
    family: Literal["linear", "power", "geometric"] = "linear"  # how the weight falls from level to level
    power: float = 2.0  # of "power"
    scale: float = 30.0  # of "cosface"
    margin: float = 0.35  # of "cosface"
    angle_margin: int = 4  # factor on the angle in "l_softmax" and "sphereface"
    centers: int = 4  # per class in "soft_triple"
    exclude_target: bool = False  # "proxy_nca" as published, without the right class in its denominator

    def __post_init__(self) -> None:
        for name in ("scale", "angle_margin", "centers"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        level_weights(self.levels, self.family, self.power)

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the levels."""
        return level_weights(self.levels, self.family, self.power)


class SemanticLoss(nn.Module):
    """Sum over levels of their weight times a loss between slices of codes and slices of class vectors.

    The class vectors are trained with the codes and not needed afterwards.
    """

    def __init__(self, config: SemanticLossConfig, classes: int, dim: int) -> None:
        super().__init__()
        if dim % config.levels:
            raise ValueError(f"dim: expected a multiple of {config.levels} levels, got {dim}")
        self.config, self.width = config, dim // config.levels
        shape = (classes, config.centers, dim) if config.loss == "soft_triple" else (classes, dim)
        self.weight = nn.Parameter(torch.randn(shape) * dim**-0.5)  # [C, D] or [C, R, D], about unit length

    @property
    def class_vectors(self) -> torch.Tensor:  # [C, D]
        """One vector a class, the mean of its centres where it has several."""
        return self.weight if self.weight.dim() == 2 else self.weight.mean(1)

    def forward(
        self,
        vectors: torch.Tensor,  # [N, D]
        labels: torch.Tensor,  # [N] int64, -1 = none
        step: int = 0,
        weight: torch.Tensor | None = None,  # [C, D]
    ) -> torch.Tensor:  # []
        """``step`` is of the training: some losses begin mildly. ``weight`` takes the place of the own vectors."""
        own = self.weight if weight is None else weight
        total = vectors.new_zeros(())
        for level, share in enumerate(self.config.weights):
            if share:
                part = slice(level * self.width, (level + 1) * self.width)
                total = total + share * self._loss(vectors[:, part], own[..., part], labels, step)
        return total

    def _loss(self, x: torch.Tensor, w: torch.Tensor, labels: torch.Tensor, step: int) -> torch.Tensor:
        config = self.config
        if config.loss == "cosface":
            return cosface(x, w, labels, scale=config.scale, margin=config.margin)
        if config.loss == "soft_triple":
            return soft_triple(x, w, labels)
        if config.loss == "proxy_nca":
            return proxy_nca(x, w, labels, exclude_target=config.exclude_target)
        angular = l_softmax if config.loss == "l_softmax" else sphereface
        return angular(x, w, labels, margin=config.angle_margin, blend=annealed_blend(step))


def _angular(
    product: torch.Tensor,  # [N, C]
    size: torch.Tensor,  # [N, C], products of lengths
    labels: torch.Tensor,  # [N]
    margin: int,
    blend: float,
) -> torch.Tensor:
    """Softmax of ``size * cos``, for the right class of ``size * (blend * cos + psi) / (blend + 1)``.

    ``psi = (-1)^k cos(margin * angle) - 2 k`` goes on falling where the cosine would turn: k half turns are done.
    """
    place = labels.clamp(min=0)[:, None]
    right, length = product.gather(1, place), size.gather(1, place)  # [N, 1]
    cosine = (right / length.clamp(min=1e-12)).clamp(-1, 1)
    turns = (margin * cosine.detach().acos() / math.pi).floor().clamp(max=margin - 1)
    psi = (1 - 2 * (turns % 2)) * _cosine_of_multiple(cosine, margin) - 2 * turns
    target = length * (blend * cosine + psi) / (blend + 1)
    return _cross_entropy(product.scatter(1, place, target), labels)


def _cosine_of_multiple(cosine: torch.Tensor, factor: int) -> torch.Tensor:
    """cos(factor * angle) by Chebyshev's recursion, which has a gradient where the arc cosine has none."""
    before, here = torch.ones_like(cosine), cosine
    for _ in range(factor - 1):
        before, here = here, 2 * cosine * here - before
    return here


def _one_hot(labels: torch.Tensor, like: torch.Tensor) -> torch.Tensor:  # [N] -> [N, C]
    return torch.zeros_like(like).scatter_(1, labels.clamp(min=0)[:, None], 1.0)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:  # [N, C], [N] -> []
    return _mean_labelled(F.cross_entropy(logits, labels, ignore_index=-1, reduction="none"), labels)


def _mean_labelled(losses: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:  # [N], [N] -> []
    labelled = labels >= 0
    # a vector without a class takes no part, whatever its values
    return losses.where(labelled, 0.0).sum() / labelled.sum().clamp(min=1)
