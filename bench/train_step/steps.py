"""One training step of an EMA quantizer: forward, loss, backward, update of the codebook; ours and the original.

An answer is all that a step leaves: indices, loss, gradient of the vectors, codes, flat in one float64 tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch

import vqkernels
from bench.case import Call, Implementation
from bench.ours import ours

DECAY, EPS = 0.99, 1e-5


class Problem(NamedTuple):
    """A batch, the codes before it, and the gradient that comes back for the values."""

    x: torch.Tensor  # [N, D]
    codebook: torch.Tensor  # [K, D]
    cotangent: torch.Tensor  # [N, D]


class Step(NamedTuple):
    """An answer taken apart."""

    indices: torch.Tensor  # [N] int64
    loss: torch.Tensor  # []
    gradient: torch.Tensor  # [N, D]
    codebook: torch.Tensor  # [K, D]

    def flat(self) -> torch.Tensor:
        return torch.cat([part.detach().reshape(-1).double() for part in self])

    @staticmethod
    def of(answer: torch.Tensor, problem: Problem) -> Step:
        n, k = len(problem.x), len(problem.codebook)
        parts = answer.split([n, 1, problem.x.numel(), problem.codebook.numel()])
        return Step(parts[0].long(), parts[1][0], parts[2].view(n, -1), parts[3].view(k, -1))


def _prepare(quantizer: Callable[..., Any], problem: Problem) -> Call:
    k, d = problem.codebook.shape
    module = quantizer()(dim=d, codebook_size=k, decay=DECAY, eps=EPS, rotation_trick=False).to(problem.x.device)
    book = module._codebook
    # every call is the next step on the same batch
    for buffer in (book.embed, book.embed_avg):
        buffer.copy_(problem.codebook[None])

    def call() -> torch.Tensor:
        x = problem.x[None].clone().requires_grad_()
        quantized, indices, loss = module(x)
        torch.autograd.backward((quantized, loss), (problem.cotangent[None], torch.ones_like(loss)))
        assert x.grad is not None
        return Step(indices, loss, x.grad, module.codebook).flat()

    return call


def _original() -> Any:
    from vector_quantize_pytorch import VectorQuantize

    return VectorQuantize


def _drop_in(backend: str | None, problem: Problem) -> Call:
    step = _prepare(lambda: vqkernels.VectorQuantize, problem)

    def call() -> torch.Tensor:
        with vqkernels.use_backend(backend) if backend else nullcontext():
            return step()

    return call


STEPS = (
    *ours("train_step", lambda problem: (problem.x[:, None], problem.codebook[None], "l2"), _drop_in),
    Implementation(
        "vector-quantize-pytorch",
        "vector_quantize_pytorch",
        partial(_prepare, _original),
        devices=("cpu", "cuda"),
        note="what it replaces; same arguments",
    ),
)
