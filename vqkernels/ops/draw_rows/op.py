"""Operator ``vqkernels::draw_rows``. Not differentiable: its callers detach."""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch

from vqkernels._core.backend import register_backends, select
from vqkernels._core.library import define_op
from vqkernels._core.random import random_integers, row_numbers, scattered_sum

register_backends(
    "draw_rows",
    triton="vqkernels.ops.draw_rows.triton",
    cpu="vqkernels.ops.draw_rows.cpu",
    reference="vqkernels.ops.draw_rows.reference",
)


class Problem(NamedTuple):
    """What a backend works on: codes and vectors, and the numbers that they draw with."""

    codes: list[torch.Tensor]  # L of [K, D_l]
    x: list[torch.Tensor]  # L of [N, D_l]
    weights: list[float]  # [L]
    metric: str
    usable: torch.Tensor  # [N] bool
    row_number: torch.Tensor  # [N] int64
    code_number: torch.Tensor  # [K] int64

    @property
    def dtype(self) -> torch.dtype:
        """One dtype for codes and vectors, at least float32: widening is exact."""
        return reduce(torch.promote_types, (level.dtype for level in (*self.codes, *self.x)), torch.float32)

    @property
    def dims(self) -> list[int]:  # [L]
        return [level.shape[1] for level in self.x]

    def nothing_drawn(self) -> tuple[torch.Tensor, torch.Tensor]:  # [K] int64, [K] float64
        """The result where there is no vector to draw."""
        rows = torch.zeros_like(self.code_number)
        return rows, torch.full_like(rows, torch.inf, dtype=torch.float64)


def _draw_rows(
    codes: list[torch.Tensor],  # L of [K, D_l]
    x: list[torch.Tensor],  # L of [N, D_l]
    weights: list[float],  # [L]
    metric: str,
    usable: torch.Tensor,  # [N] bool
    seed: torch.Tensor,  # [] int64
    backend: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # [K] int64, [K] float64
    usable = torch.stack([usable, *(level.isfinite().all(dim=1) for level in x)]).all(dim=0)
    seeds = random_integers(seed, (len(x),), usable.device)
    row_number = row_numbers(seeds[0], x[0])
    for level, its_seed in zip(x[1:], seeds[1:], strict=True):
        row_number = scattered_sum(row_number, row_numbers(its_seed, level))
    code_number = random_integers(-seed, (codes[0].shape[0],), usable.device)  # the sign keeps these draws apart
    problem = Problem(codes, x, weights, metric, usable, row_number, code_number)
    rows, key = select("draw_rows", backend, *problem).run(problem)
    return rows, key


def _draw_rows_fake(
    codes: list[torch.Tensor],
    x: list[torch.Tensor],
    weights: list[float],
    metric: str,
    usable: torch.Tensor,
    seed: torch.Tensor,
    backend: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    k = codes[0].shape[0]
    return usable.new_empty(k, dtype=torch.int64), usable.new_empty(k, dtype=torch.float64)


draw_rows_op = define_op(
    "draw_rows(Tensor[] codes, Tensor[] x, float[] weights, str metric, Tensor usable, Tensor seed, str? backend) "
    "-> (Tensor, Tensor)",
    _draw_rows,
    _draw_rows_fake,
)
