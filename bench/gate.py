"""Are the answers right? Asked before anything is timed.

Truth is the canonical float64 distance, winners ordered by (distance, index). Ours must equal it. Of a peer a
different index is accepted if float32 arithmetic explains it: if no evaluated distance errs by more than ``e``, then
the code it ranks m-th is at most ``2 e`` farther than the true m-th, because the m nearest codes all evaluate to at
most the true m-th distance plus ``e``. What ``e`` is depends on the distance: :meth:`Geometry.budget`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import numpy as np
import torch

from bench.case import Verdict

_PRODUCTS = 1 << 29  # float64 work the truth may take
_SORTED = 1 << 23  # distances that the truth of several answers may sort
_PART = 1 << 20  # distances, or elements of codes, held at a time
_MIN_ROWS, _MAX_ROWS = 8, 512
U32 = 2.0**-24


class Geometry(Protocol):
    """A problem as its distances; G groups are looked up side by side."""

    shape: tuple[int, int, int, int]  # N, G, K, and D: multiplications per distance
    device: torch.device

    def all_distances(self, rows: torch.Tensor) -> torch.Tensor:
        """Canonical float64 distances of some vectors to all codes: ``[n] -> [n, G, K]``."""

    def distances(self, rows: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """The same to given codes: ``[n], [n, G, M] -> [n, G, M]``; indices are in range."""

    def budget(self, rows: torch.Tensor, answer: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """How much farther than the truth float32 may be: ``[n], [n, G, M], [n, G, M] -> [n, G, M]``."""


def judge(
    geometry: Geometry,
    answers: Mapping[str, torch.Tensor],
    ours: Collection[str],
    *,
    m: int = 1,
) -> dict[str, Verdict]:
    """Hold the indices of every implementation against the truth.

    The truth is computed for a subset of the vectors. On all of them each answer is held against every other:
    nobody may have found nearer codes than ours, or as near a code of lower index where there is one answer.

    Args:
        geometry: the problem.
        answers: by implementation, int64 indices of N * G * M elements, nearest first.
        ours: names whose answers must be the truth itself.
        m: answers per vector and group.
    """
    n, g, k, _ = geometry.shape
    rows = checked_rows(geometry, m).to(geometry.device)
    truth = _truth(geometry, rows, m)
    best = geometry.distances(rows, truth)
    # an answer of another shape is no answer
    given = {
        name: a.to(geometry.device).reshape(n, g, m) if a.numel() == n * g * m else _nothing(geometry, m)
        for name, a in answers.items()
    }
    beaten = _beaten(geometry, given)
    verdicts = {}
    for name, indices in given.items():
        answer = indices[rows]
        value = _valid_distances(geometry, rows, answer)
        different = answer != truth
        wrong = different & ~(value - best <= geometry.budget(rows, answer.clamp(0, k - 1), truth))
        passed = not (different.any() or beaten[name]) if name in ours else not wrong.any()
        verdicts[name] = Verdict(
            indices.numel(), answer.numel(), int(different.sum()), int(wrong.sum()), beaten[name], bool(passed)
        )
    return verdicts


def checked_rows(geometry: Geometry, m: int) -> torch.Tensor:
    """Vectors whose truth is computed: random but fixed, as many as the work allows, at least a few."""
    n, g, k, d = geometry.shape
    # one winner takes a minimum, several take a sort
    affordable = min(_PRODUCTS // (g * k * d), _MAX_ROWS if m == 1 else _SORTED // (g * k))
    wanted = min(_MAX_ROWS, max(_MIN_ROWS, affordable))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return order[:wanted].sort().values


def _truth(geometry: Geometry, rows: torch.Tensor, m: int) -> torch.Tensor:  # [n] -> [n, G, M]
    _, g, k, _ = geometry.shape
    parts = []
    for part in rows.split(max(1, _PART // (g * k))):
        distance = geometry.all_distances(part)
        # both give the lowest index where distances are equal
        winners = distance.min(2, keepdim=True).indices if m == 1 else distance.sort(dim=2, stable=True).indices
        parts.append(winners[..., :m])
    return torch.cat(parts)


def _beaten(geometry: Geometry, given: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """How many answers of each implementation somebody improved on."""
    n, g, k, d = geometry.shape
    m = next(iter(given.values())).shape[2]
    beaten = dict.fromkeys(given, 0)
    for rows in torch.arange(n, device=geometry.device).split(max(1, _PART // (g * m * d))):
        part = {name: indices[rows] for name, indices in given.items()}
        value = {name: _valid_distances(geometry, rows, indices) for name, indices in part.items()}
        nearest = torch.stack(list(value.values())).amin(0)
        for name in given:
            worse = value[name] > nearest
            if m == 1:
                lowest = torch.stack([torch.where(value[a] == nearest, part[a], k) for a in part]).amin(0)
                worse |= part[name] != lowest
            beaten[name] += int(worse.sum())
    return beaten


def _valid_distances(geometry: Geometry, rows: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:  # [n, G, M]
    """Distances of an answer, made what they prove: ``inf`` from an index that is none or given twice on.

    The first m of an answer bound the true m-th distance by the largest among them.
    """
    k = geometry.shape[2]
    usable = (indices >= 0) & (indices < k)
    ordered, position = indices.sort(dim=2, stable=True)
    repeated = torch.zeros_like(usable)
    repeated.scatter_(2, position[..., 1:], ordered[..., 1:] == ordered[..., :-1])
    value = torch.where(usable & ~repeated, geometry.distances(rows, indices.clamp(0, k - 1)), torch.inf)
    return value.cummax(2).values


def _nothing(geometry: Geometry, m: int) -> torch.Tensor:
    n, g, _, _ = geometry.shape
    return torch.full((n, g, m), -1, device=geometry.device)


class SquaredL2:
    """``|x - c|^2``, summed over d in order as the package defines it.

    With ``u = 2^-24`` and ``m`` the mean code, the expanded formula in float32 on centred data errs by at most
    ``gamma (|x - m| + |c - m|)^2``, ``gamma = (D + 6) u / (1 - (D + 6) u)``: D products and their sum, three terms
    to add, a square root. It misses by more on data far from the origin, and is then called wrong.
    """

    def __init__(self, x: torch.Tensor, codebook: torch.Tensor) -> None:  # [N, D] or [N, G, D], [K, D] or [G, K, D]
        self.x = x if codebook.dim() == 3 else x[:, None]  # [N, G, D]
        self.codebook = codebook if codebook.dim() == 3 else codebook[None]  # [G, K, D]
        g, k, d = self.codebook.shape
        self.shape = (x.shape[0], g, k, d)
        self.device = x.device
        self._mean = self.codebook.mean(1, dtype=torch.float64)  # [G, D]
        self._by_dimension = self.codebook.permute(2, 0, 1).contiguous()  # [D, G, K]

    def all_distances(self, rows: torch.Tensor) -> torch.Tensor:
        return _sum_of_squares(self.x[rows].permute(2, 0, 1)[..., None], self._by_dimension[:, None])

    def distances(self, rows: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return _sum_of_squares(self.x[rows].permute(2, 0, 1)[..., None], self._codes(indices).permute(3, 0, 1, 2))

    def budget(self, rows: torch.Tensor, answer: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        operations = (self.shape[3] + 6) * U32
        length = (self.x[rows].double() - self._mean).norm(dim=2)[..., None]
        # the codes up to the last of the answer and of the truth are the ones evaluated against each other
        code = torch.maximum(*(self._from_mean(indices) for indices in (answer, truth))).cummax(2).values
        budget: torch.Tensor = 2 * operations / (1 - operations) * (length + code).square()
        return budget

    def _from_mean(self, indices: torch.Tensor) -> torch.Tensor:  # [n, G, M] -> [n, G, M]
        distance: torch.Tensor = (self._codes(indices).double() - self._mean[:, None]).norm(dim=3)
        return distance

    def _codes(self, indices: torch.Tensor) -> torch.Tensor:  # [n, G, M] -> [n, G, M, D]
        group = torch.arange(self.shape[1], device=self.device)[:, None]
        return self.codebook[group, indices]


class Cosine(SquaredL2):
    """``-x.c / |c|``, which orders codes as the cosine does; products summed over d in order.

    A float32 evaluation normalises both, with an error of ``(D / 2 + 2) u`` each, and errs by ``D u`` in the product
    of unit vectors.
    """

    def all_distances(self, rows: torch.Tensor) -> torch.Tensor:
        product = _sum_of_products(self.x[rows].permute(2, 0, 1)[..., None], self._by_dimension[:, None])
        return _over(-product, _norms(self._by_dimension)[None])

    def distances(self, rows: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        codes = self._codes(indices).permute(3, 0, 1, 2)
        return _over(-_sum_of_products(self.x[rows].permute(2, 0, 1)[..., None], codes), _norms(codes))

    def budget(self, rows: torch.Tensor, answer: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        operations = (2 * self.shape[3] + 6) * U32
        length = self.x[rows].double().norm(dim=2)[..., None]
        return (2 * operations / (1 - operations) * length).expand(answer.shape)


def _sum_of_products(x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:  # [D, ...], [D, ...] -> [...]
    """Float64, d by d, each product rounded before it is added."""
    total = torch.zeros(torch.broadcast_shapes(x.shape[1:], codes.shape[1:]), dtype=torch.float64, device=x.device)
    for a, b in zip(x, codes, strict=True):
        total += a.double() * b.double()
    return total


def _norms(codes: torch.Tensor) -> torch.Tensor:  # [D, ...] -> [...]
    return _sqrt(_sum_of_products(codes, codes))


def _over(value: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """A code of length zero has cosine 0 to everything."""
    return torch.where(norm > 0, value / norm, 0.0)


def _sum_of_squares(x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:  # [D, ...], [D, ...] -> [...]
    """Float64, d by d, each square rounded before it is added."""
    total = torch.zeros(torch.broadcast_shapes(x.shape[1:], codes.shape[1:]), dtype=torch.float64, device=x.device)
    for a, b in zip(x, codes, strict=True):
        total += (a.double() - b.double()).square_()
    return total


def _sqrt(value: torch.Tensor) -> torch.Tensor:
    # torch's on the CPU is not always correctly rounded, numpy's and CUDA's are
    return value.sqrt() if value.is_cuda else torch.from_numpy(np.sqrt(value.numpy()))


class WeightedL2:
    """``sum_l w_l |x_l - c_l|``, levels added in order.

    A float32 evaluation of ``s = |x_l - c_l|^2`` errs by at most ``e``, half the budget of :class:`SquaredL2`, and
    its root by ``e / sqrt(s)`` and by ``sqrt(e)`` at most: where a level is near zero the expanded formula really
    does that. The product and the sum over L levels round L + 2 times more.
    """

    def __init__(
        self, xs: tuple[torch.Tensor, ...], codebooks: tuple[torch.Tensor, ...], weights: tuple[float, ...]
    ) -> None:
        self.levels = [SquaredL2(x, codebook) for x, codebook in zip(xs, codebooks, strict=True)]
        self.weights = weights
        n, _, k, _ = self.levels[0].shape
        self.shape = (n, 1, k, sum(level.shape[3] for level in self.levels))
        self.device = self.levels[0].device

    def all_distances(self, rows: torch.Tensor) -> torch.Tensor:
        return self._combine([level.all_distances(rows) for level in self.levels])

    def distances(self, rows: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return self._combine([level.distances(rows, indices) for level in self.levels])

    def budget(self, rows: torch.Tensor, answer: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        farther = torch.maximum(self.distances(rows, answer), self.distances(rows, truth))
        rounding = (len(self.levels) + 2) * U32
        # the answer was taken too near and the truth too far
        roots = sum(self._weighted(self._root_errors(rows, indices, answer, truth)) for indices in (answer, truth))
        return roots + 2 * rounding / (1 - rounding) * farther

    def _root_errors(
        self, rows: torch.Tensor, indices: torch.Tensor, answer: torch.Tensor, truth: torch.Tensor
    ) -> list[torch.Tensor]:
        errors = []
        for level in self.levels:
            error = level.budget(rows, answer, truth) / 2
            errors.append(torch.minimum(error.sqrt(), error / level.distances(rows, indices).sqrt()))
        return errors

    def _combine(self, squares: list[torch.Tensor]) -> torch.Tensor:
        return self._weighted([_sqrt(square) for square in squares])

    def _weighted(self, terms: list[torch.Tensor]) -> torch.Tensor:
        total = torch.zeros_like(terms[0])
        for weight, term in zip(self.weights, terms, strict=True):
            total += weight * term
        return total
