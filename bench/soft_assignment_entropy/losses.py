"""One training step of ``sample - usage``, forward and backward: ours, and the usual code.

An answer is the loss, the gradient of the vectors and that of the codes, each flat, in one float64 tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

import vqkernels
from bench.case import Call, Implementation, Setting

_CHUNKS = (1 << 24, 1 << 22, 1 << 20)  # pairs held at once


class Problem(NamedTuple):
    """Vectors, codes, and the temperature of the softmax over their squared distances."""

    x: torch.Tensor  # [N, D]
    codebook: torch.Tensor  # [K, D]
    temperature: float


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def step(problem: Problem, loss: Loss) -> torch.Tensor:
    """Loss and gradients of one step."""
    x, codebook = (t.detach().requires_grad_() for t in (problem.x, problem.codebook))
    value = loss(x, codebook)
    gradients = torch.autograd.grad(value, (x, codebook))
    return torch.cat([t.detach().reshape(-1).double() for t in (value, *gradients)])


def fused(problem: Problem, backend: str | None = None) -> torch.Tensor:
    def loss(x: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
        sample, usage, _ = vqkernels.soft_assignment_entropy(
            x, codebook, temperature=problem.temperature, backend=backend
        )
        return sample - usage

    return step(problem, loss)


def _with_lookup(problem: Problem) -> Call:
    """What a quantizer with this loss calls: what the lookup adds is what one pass for both could save at most."""

    def call() -> torch.Tensor:
        vqkernels.nearest_code(problem.x, problem.codebook)
        return fused(problem)

    return call


def _assign(x: torch.Tensor, codebook: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of entropies and of assignments of some vectors."""
    # |x|^2 is the same for all codes of a row
    logits = torch.addmm(codebook.square().sum(1), x, codebook.t(), alpha=-2) / -temperature
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    return -(p * log_p).sum(), p.sum(0)


def _finish(entropy: torch.Tensor, assigned: torch.Tensor, n: int) -> torch.Tensor:
    mean = assigned / n
    return entropy / n + (mean * mean.clamp(min=torch.finfo(mean.dtype).tiny).log()).sum()


def _materialised(problem: Problem) -> Call:
    n = len(problem.x)
    return lambda: step(problem, lambda x, codebook: _finish(*_assign(x, codebook, problem.temperature), n))


def _checkpointed(problem: Problem, *, pairs: int) -> Call:
    """Chunks of vectors, each computed again in the backward."""
    rows = max(64, pairs // len(problem.codebook))

    def loss(x: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
        parts = [
            checkpoint(_assign, chunk, codebook, problem.temperature, use_reentrant=False) for chunk in x.split(rows)
        ]
        entropy, assigned = (torch.stack(sums).sum(0) for sums in zip(*parts, strict=True))
        return _finish(entropy, assigned, len(x))

    return lambda: step(problem, loss)


def _chosen(problem: Problem) -> Setting:
    choices = vqkernels.explain("soft_assignment_entropy", problem.x[:, None], problem.codebook[None])
    return {"backend": next(choice.backend for choice in choices if choice.selected), "arithmetic": "fp32"}


LOSSES = (
    Implementation(
        "vqkernels",
        "vqkernels",
        lambda problem: lambda: fused(problem),
        ours=True,
        describe=_chosen,
        devices=("cpu", "cuda"),
    ),
    Implementation(
        "vqkernels, lookup too",
        "vqkernels",
        _with_lookup,
        ours=True,
        describe=_chosen,
        devices=("cpu", "cuda"),
        note="the exact nearest codes as well",
    ),
    Implementation(
        "torch materialised",
        "torch",
        _materialised,
        note="the usual code; several N x K tensors",
        devices=("cpu", "cuda"),
    ),
    Implementation(
        "torch checkpointed",
        "torch",
        _checkpointed,
        devices=("cpu", "cuda"),
        settings=tuple({"pairs": pairs} for pairs in _CHUNKS),
        note="in chunks of vectors, recomputed in the backward",
    ),
)
