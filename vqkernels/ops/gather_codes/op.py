"""Operator ``vqkernels::gather_codes``; its backward is the segment sum of ``code_stats``."""

from __future__ import annotations

from typing import Any

import torch

from vqkernels._core.backend import register_backends, select
from vqkernels._core.library import define_op, register_autograd
from vqkernels.ops.code_stats.op import code_stats_op

register_backends(
    "gather_codes",
    triton="vqkernels.ops.gather_codes.triton",
    cpu="vqkernels.ops.gather_codes.cpu",
    reference="vqkernels.ops.gather_codes.reference",
)


def _gather_codes(
    codebook: torch.Tensor,  # [G, K, D]
    indices: torch.Tensor,  # [N, G] int64
    backend: str | None,
) -> torch.Tensor:  # [N, G, D]
    codes: torch.Tensor = select("gather_codes", backend, codebook, indices).run(codebook, indices)
    return codes


def _gather_codes_fake(codebook: torch.Tensor, indices: torch.Tensor, backend: str | None) -> torch.Tensor:
    return codebook.new_empty(*indices.shape, codebook.shape[2])


gather_codes_op = define_op(
    "gather_codes(Tensor codebook, Tensor indices, str? backend) -> Tensor", _gather_codes, _gather_codes_fake
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    codebook, indices, backend = inputs
    ctx.save_for_backward(indices)
    ctx.num_codes, ctx.dtype, ctx.backend = codebook.shape[1], codebook.dtype, backend


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
    (indices,) = ctx.saved_tensors
    _, total = code_stats_op(grad, indices, ctx.num_codes, None, None, True, False, ctx.backend)
    return total.to(ctx.dtype), None, None


register_autograd("gather_codes", _backward, _setup_context)
