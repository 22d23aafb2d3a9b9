"""Operator ``vqkernels::code_range``: what the fixed-point grid of ``code_stats`` is chosen by."""

from __future__ import annotations

import torch

from vqkernels._core.backend import register_backends, select
from vqkernels._core.library import define_op

register_backends(
    "code_range",
    triton="vqkernels.ops.code_range.triton",
    cpu="vqkernels.ops.code_range.cpu",
    reference="vqkernels.ops.code_range.reference",
)


def _code_range(
    x: torch.Tensor,  # [N, G, D]
    indices: torch.Tensor,  # [N, G] int64
    num_codes: int,
    weight: torch.Tensor | None,  # [N, G]
    skip_nonfinite: bool,  # else the finite entries of such a vector take part
    backend: str | None,
) -> torch.Tensor:  # [G, K, 4] int64
    args = (x, indices, num_codes, weight, skip_nonfinite)
    result: torch.Tensor = select("code_range", backend, *args).run(*args)
    return result


def _code_range_fake(
    x: torch.Tensor,
    indices: torch.Tensor,
    num_codes: int,
    weight: torch.Tensor | None,
    skip_nonfinite: bool,
    backend: str | None,
) -> torch.Tensor:
    return x.new_empty(x.shape[1], num_codes, 4, dtype=torch.int64)


code_range_op = define_op(
    "code_range(Tensor x, Tensor indices, SymInt num_codes, Tensor? weight, bool skip_nonfinite, str? backend) "
    "-> Tensor",
    _code_range,
    _code_range_fake,
)
