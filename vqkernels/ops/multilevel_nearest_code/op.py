"""Operator ``vqkernels::multilevel_nearest_code``. Not differentiable: its callers detach."""

from __future__ import annotations

import torch

from vqkernels._core.backend import register_backends, select
from vqkernels._core.library import define_op

register_backends(
    "multilevel_nearest_code",
    cpu="vqkernels.ops.multilevel_nearest_code.cpu",
    triton="vqkernels.ops.multilevel_nearest_code.triton",
    reference="vqkernels.ops.multilevel_nearest_code.reference",
)


def _multilevel_nearest_code(
    xs: list[torch.Tensor],  # L of [N, D_l]
    codebooks: list[torch.Tensor],  # L of [K, D_l]
    weights: list[float],
    squared: bool,
    backend: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # [N] int64, [N] float32
    module = select("multilevel_nearest_code", backend, xs, codebooks, weights, squared)
    indices, distance = module.run(xs, codebooks, weights, squared)
    return indices, distance


def _multilevel_nearest_code_fake(
    xs: list[torch.Tensor],
    codebooks: list[torch.Tensor],
    weights: list[float],
    squared: bool,
    backend: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = xs[0].shape[:1]
    return xs[0].new_empty(shape, dtype=torch.int64), xs[0].new_empty(shape, dtype=torch.float32)


multilevel_nearest_code_op = define_op(
    "multilevel_nearest_code(Tensor[] xs, Tensor[] codebooks, float[] weights, bool squared, str? backend)"
    " -> (Tensor, Tensor)",
    _multilevel_nearest_code,
    _multilevel_nearest_code_fake,
)
