"""Which vector of a batch a code would move to."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vqkernels._core.random import random_integers, random_uniform
from vqkernels.ops.gather_codes import gather_codes
from vqkernels.ops.nearest_code import nearest_code
from vqkernels.ops.reanchor.op import draw_rows_op


class Anchors(NamedTuple):
    """One vector per code, and the number by which anchors of several processes compete."""

    vectors: torch.Tensor  # [G, K, D], dtype of x
    key: torch.Tensor  # [G, K] float32, the least wins; inf = there is no vector to move to


def closest_vectors(
    codebook: torch.Tensor,  # [G, K, D]
    x: torch.Tensor,  # [N, G, D]
    indices: torch.Tensor,  # [N, G], -1 = not a candidate
    metric: str,
    backend: str | None = None,
) -> Anchors:
    """The vector nearest to each code: the lookup with its roles exchanged."""
    candidates = _candidates(x, indices)
    nearest, distance = nearest_code(codebook.transpose(0, 1), candidates, metric=metric, backend=backend)
    key = torch.where(distance.isnan(), torch.inf, distance)
    return Anchors(_take(candidates, nearest, backend), key.transpose(0, 1))


def drawn_vectors(
    codebook: torch.Tensor,  # [G, K, D]
    x: torch.Tensor,  # [N, G, D]
    indices: torch.Tensor,  # [N, G], -1 = not a candidate
    metric: str,
    seed: torch.Tensor | int,
    backend: str | None = None,
) -> Anchors:
    """A vector drawn for each code, with a probability proportional to exp(-distance).

    The key is the distance less a number of Gumbel's distribution, of which the least wins: that of several processes
    draws from all of their vectors.
    """
    seeds = random_integers(seed, (x.shape[1],), x.device)
    usable = indices >= 0
    drawn = [draw_rows_op([codebook[g]], [x[:, g]], [1.0], metric, usable[:, g], seeds[g]) for g in range(x.shape[1])]
    rows, key = (torch.stack(each) for each in zip(*drawn, strict=True))
    return Anchors(_take(_candidates(x, indices), rows.transpose(0, 1), backend), key)


def random_vectors(
    x: torch.Tensor,  # [N, G, D]
    indices: torch.Tensor,  # [N, G], -1 = not a candidate
    slot: torch.Tensor,  # [G, K] int64, at least 0
    seed: torch.Tensor | int,
    backend: str | None = None,
) -> Anchors:
    """A vector drawn for each code; different for different slots as long as there are enough vectors.

    The key is exponentially distributed with the number of candidates as its rate: the process whose key is
    least is any of them with a probability proportional to what it has to offer.
    """
    candidates = _candidates(x, indices)
    usable = indices >= 0
    number = random_integers(seed, tuple(usable.shape), x.device)
    lottery = torch.where(usable, number, torch.iinfo(torch.int64).max)
    order = lottery.transpose(0, 1).argsort(dim=1, stable=True)  # [G, N], candidates first
    order = torch.cat([order, torch.zeros_like(slot[:, :1])], dim=1)  # something to read when N = 0
    available = usable.sum(0)[:, None]  # [G, 1]
    drawn = order.gather(1, slot % available.clamp(min=1))
    key = -random_uniform(seed, tuple(slot.shape), x.device).log() / available
    return Anchors(_take(candidates, drawn.transpose(0, 1), backend), key)


def _candidates(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:  # [G, N + 1, D]
    """The vectors as a codebook: NaN where none may be chosen, and one such row more so that it is never empty."""
    rows = torch.where((indices >= 0)[..., None], x, torch.nan)
    return torch.cat([rows, x.new_full((1, *x.shape[1:]), torch.nan)]).transpose(0, 1)


def _take(candidates: torch.Tensor, rows: torch.Tensor, backend: str | None) -> torch.Tensor:
    """``[G, N + 1, D], [K, G] -> [G, K, D]``"""
    return gather_codes(candidates, rows, backend=backend).transpose(0, 1)
