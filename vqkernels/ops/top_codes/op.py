"""Operator ``vqkernels::top_codes``. Not differentiable: its callers detach."""

from __future__ import annotations

import torch

from vqkernels._core.backend import register_backends, select
from vqkernels._core.library import define_op

register_backends(
    "top_codes",
    triton="vqkernels.ops.top_codes.triton",
    cpu="vqkernels.ops.top_codes.cpu",
    reference="vqkernels.ops.top_codes.reference",
)


def _top_codes(
    x: torch.Tensor,  # [N, G, D]
    codebook: torch.Tensor,  # [G, K, D]
    m: int,
    metric: str,
    backend: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # [N, G, M] int64, [N, G, M] float32
    module = select("top_codes", backend, x, codebook, m, metric)
    indices, distance = module.run(x, codebook, m, metric)
    return indices, distance


def _top_codes_fake(
    x: torch.Tensor, codebook: torch.Tensor, m: int, metric: str, backend: str | None
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (*x.shape[:-1], m)
    return x.new_empty(shape, dtype=torch.int64), x.new_empty(shape, dtype=torch.float32)


top_codes_op = define_op(
    "top_codes(Tensor x, Tensor codebook, int m, str metric, str? backend) -> (Tensor, Tensor)",
    _top_codes,
    _top_codes_fake,
)
