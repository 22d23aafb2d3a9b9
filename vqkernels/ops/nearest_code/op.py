"""Operator ``vqkernels::nearest_code``. Not differentiable: its callers detach."""

from __future__ import annotations

import torch

from vqkernels._core.backend import register_backends, select
from vqkernels._core.library import define_op

register_backends(
    "nearest_code",
    cuda="vqkernels.ops.nearest_code.cuda",
    triton="vqkernels.ops.nearest_code.triton",
    cpu="vqkernels.ops.nearest_code.cpu",
    reference="vqkernels.ops.nearest_code.reference",
)


def _nearest_code(
    x: torch.Tensor,  # [N, G, D]
    codebook: torch.Tensor,  # [G, K, D]
    metric: str,
    backend: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # [N, G] int64, [N, G] float32
    module = select("nearest_code", backend, x, codebook, metric)
    indices, distance = module.run(x, codebook, metric)
    return indices, distance


def _nearest_code_fake(
    x: torch.Tensor, codebook: torch.Tensor, metric: str, backend: str | None
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = x.shape[:-1]
    return x.new_empty(shape, dtype=torch.int64), x.new_empty(shape, dtype=torch.float32)


nearest_code_op = define_op(
    "nearest_code(Tensor x, Tensor codebook, str metric, str? backend) -> (Tensor, Tensor)",
    _nearest_code,
    _nearest_code_fake,
)
