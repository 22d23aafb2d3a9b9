"""The multi-level lookups that compete. No library has one; the peers are the PyTorch code people write.

A peer is ``(problem, **setting) -> call -> indices [N]``. The levels' distances of only a chunk of N exist at a time:
a fair opponent does not run out of memory. What depends on the codebooks alone is made outside its clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bench.case import DEVICES, Call, Implementation
from bench.chunks import CHUNKS, CUDA_CHUNKS, Expanded, chunk_rows, chunked, in_chunks
from bench.multilevel_nearest_code.problem import MultilevelProblem
from bench.ours import ours


def canonical(problem: MultilevelProblem) -> Sequence[Any]:
    """What the backends of the op receive."""
    return list(problem.xs), list(problem.codebooks), list(problem.weights), False


def _cdist(problem: MultilevelProblem, *, pairs: int) -> Call:
    rows = chunk_rows(problem.xs[0], problem.codebooks[0], pairs)
    return in_chunks(rows, lambda *chunk: _sum_of_distances(chunk, problem).argmin(1), *problem.xs)


def _sum_of_distances(chunk: Sequence[torch.Tensor], problem: MultilevelProblem) -> torch.Tensor:  # [n, K]
    levels = zip(chunk, problem.codebooks, problem.weights, strict=True)
    return torch.stack([weight * torch.cdist(x, codebook) for x, codebook, weight in levels]).sum(0)


def _tuned(problem: MultilevelProblem, *, pairs: int) -> Call:
    rows = chunk_rows(problem.xs[0], problem.codebooks[0], pairs)
    expanded = [Expanded(codebook, rows) for codebook in problem.codebooks]

    def lookup(*chunk: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor | None = None
        for x, distance, weight in zip(chunk, expanded, problem.weights, strict=True):
            # in place, in each level's own buffer
            level = distance(x).add_(x.square().sum(1, keepdim=True)).clamp_(min=0).sqrt_()
            total = level.mul_(weight) if total is None else total.add_(level, alpha=weight)
        assert total is not None
        return total.min(1).indices

    return in_chunks(rows, lookup, *problem.xs)


def _compiled(problem: MultilevelProblem, *, pairs: int, form: str) -> Call:
    def expanded(*chunk: torch.Tensor) -> torch.Tensor:
        levels = zip(chunk, problem.codebooks, norms, problem.weights, strict=True)
        squares = (
            (weight, x.square().sum(1, keepdim=True) - 2 * x @ codes.t() + norm) for x, codes, norm, weight in levels
        )
        return sum(weight * square.clamp(min=0).sqrt() for weight, square in squares).argmin(1)  # type: ignore[union-attr]

    def cdist(*chunk: torch.Tensor) -> torch.Tensor:
        return _sum_of_distances(chunk, problem).argmin(1)

    norms = [codebook.square().sum(1) for codebook in problem.codebooks]
    torch.compiler.reset()  # past a few shapes of one function it would silently run it uncompiled
    lookup = torch.compile({"expanded": expanded, "cdist": cdist}[form], dynamic=False)
    return in_chunks(chunk_rows(problem.xs[0], problem.codebooks[0], pairs), lookup, *problem.xs)


LOOKUPS = (
    *ours("multilevel_nearest_code", canonical),
    Implementation(
        "torch.cdist+argmin",
        "torch",
        _cdist,
        chunked(*CHUNKS),
        chunked(*CUDA_CHUNKS),
        note="cdist per level, weighted sum, argmin; chunked over N",
        devices=DEVICES,
    ),
    Implementation(
        "torch tuned",
        "torch",
        _tuned,
        chunked(*CHUNKS),
        chunked(*CUDA_CHUNKS),
        note="expanded form in reused buffers, norms of the codes outside the clock, min(1); chunked over N",
        devices=DEVICES,
    ),
    Implementation(
        "torch.compile",
        "torch",
        _compiled,
        (*chunked(1 << 22, form="expanded"), *chunked(1 << 22, form="cdist")),
        (*chunked(1 << 28, form="expanded"), *chunked(1 << 28, form="cdist")),
        flag="--compile",
        note="inductor; the faster of the expanded form and cdist, chunked over N",
        devices=DEVICES,
    ),
)
