"""References for error budgets that hold whatever kernels of torch compute them.

One float32 run may be right by luck, and a budget taken from it is too small for a processor with other kernels.
Runs on inputs that differ in the last bit round differently everywhere; the worst of them is what float32 may be off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

RUNS = 8


def in_their_last_bits(tensors: Sequence[torch.Tensor], runs: int = RUNS) -> Iterator[list[torch.Tensor]]:
    """The tensors with every element moved by at most one unit in the last place, differently in each run."""
    for run in range(runs):
        generator = torch.Generator().manual_seed(run)
        yield [_moved(tensor, generator) for tensor in tensors]


def _moved(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    by = torch.finfo(tensor.dtype).eps * (2 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 1)
    return (tensor.detach().double() * (1 + by)).to(tensor.dtype)


def farthest(truth: torch.Tensor, references: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of each element, what lies farthest from the truth among the references of its shape."""
    stacked = torch.stack([reference.detach() for reference in references])
    return stacked.gather(0, (stacked - truth).abs().argmax(0, keepdim=True))[0]
