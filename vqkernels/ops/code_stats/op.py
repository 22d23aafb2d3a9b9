"""Operator ``vqkernels::code_stats``: the sums behind EMA, k-means and the backward of a gather."""

from __future__ import annotations

import torch

from vqkernels._core.backend import register_backends, select
from vqkernels._core.library import define_op

register_backends(
    "code_stats",
    cpu="vqkernels.ops.code_stats.cpu",
    reference="vqkernels.ops.code_stats.reference",
)


def _code_stats(
    x: torch.Tensor,  # [N, G, D]
    indices: torch.Tensor,  # [N, G] int64
    num_codes: int,
    weight: torch.Tensor | None,  # [N, G]
    deterministic: bool,
    skip_nonfinite: bool,  # False in a backward, where a NaN must stay visible
    backend: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # [G, K] float32, [G, K, D] float32 or float64
    module = select("code_stats", backend, x, indices, num_codes, weight, deterministic, skip_nonfinite)
    count, total = module.run(x, indices, num_codes, weight, deterministic, skip_nonfinite)
    return count, total


def total_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _code_stats_fake(
    x: torch.Tensor,
    indices: torch.Tensor,
    num_codes: int,
    weight: torch.Tensor | None,
    deterministic: bool,
    skip_nonfinite: bool,
    backend: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    count = x.new_empty(x.shape[1], num_codes, dtype=torch.float32)
    return count, x.new_empty(x.shape[1], num_codes, x.shape[2], dtype=total_dtype(x))


code_stats_op = define_op(
    "code_stats(Tensor x, Tensor indices, SymInt num_codes, Tensor? weight, bool deterministic, "
    "bool skip_nonfinite, str? backend) -> (Tensor, Tensor)",
    _code_stats,
    _code_stats_fake,
)
