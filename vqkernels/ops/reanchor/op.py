"""Operator ``vqkernels::race_rows``: vectors fall to slots, the winner of each; a pass over vectors, no sort."""

from __future__ import annotations

import torch

from vqkernels._core.library import define_op
from vqkernels._core.random import random_integers, row_numbers


def _race_rows(
    x: torch.Tensor,  # [N, G, D]
    usable: torch.Tensor,  # [N, G] bool
    slots: torch.Tensor,  # [G] int64, how many of the K are in the race
    num_slots: int,  # K
    seed: torch.Tensor,  # [] int64
) -> tuple[torch.Tensor, torch.Tensor]:  # [G, K] int64, N where there is none; [G, K] float64, infinite there
    """A vector falls to slot ``h mod slots``, h a number in [0, 2^32) that its bits draw; the least h wins, of equal
    ones the first."""
    n, groups, _ = x.shape
    seeds = random_integers(seed, (groups,), x.device)
    number = torch.stack([row_numbers(seeds[g], x[:, g]) for g in range(groups)], dim=1)
    # in a row of K + 1 slots per group the last one takes the vectors that stay out
    slot = torch.where(usable & (slots > 0), number % slots.clamp(min=1), num_slots)
    slot = (slot + torch.arange(groups, device=x.device) * (num_slots + 1)).reshape(-1)
    number = number.reshape(-1)
    lowest = number.new_full((groups * (num_slots + 1),), 1 << 32).scatter_reduce_(0, slot, number, "amin")
    row = torch.arange(n, device=x.device).repeat_interleave(groups)
    row = row.where(number == lowest[slot], n)
    winner = torch.full_like(lowest, n).scatter_reduce_(0, slot, row, "amin")
    rows, lowest = (t.view(groups, -1)[:, :num_slots] for t in (winner, lowest))
    return rows.contiguous(), lowest.double().masked_fill(rows == n, torch.inf)


def _race_rows_fake(
    x: torch.Tensor, usable: torch.Tensor, slots: torch.Tensor, num_slots: int, seed: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (x.shape[1], num_slots)
    return x.new_empty(shape, dtype=torch.int64), x.new_empty(shape, dtype=torch.float64)


race_rows_op = define_op(
    "race_rows(Tensor x, Tensor usable, Tensor slots, SymInt num_slots, Tensor seed) -> (Tensor, Tensor)",
    _race_rows,
    _race_rows_fake,
)
