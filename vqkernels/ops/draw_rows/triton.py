"""Launcher of the Triton draw."""

from __future__ import annotations

import torch

from vqkernels._core.triton import (
    launch_device,
    launch_target,
    triton_by_name_only_reasons,
    triton_unsupported_reasons,
)
from vqkernels.ops.draw_rows.op import Problem

PLAIN = {"enable_fp_fusion": False}  # the canonical sums are defined without fused multiply-add


def unsupported_reasons(*args: object) -> list[str]:
    return triton_unsupported_reasons(*args)


def by_name_only_reasons(*args: object) -> list[str]:
    return triton_by_name_only_reasons(*args)


def run(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    from vqkernels.ops.draw_rows import triton_kernels as kernels

    rows, key = problem.nothing_drawn()
    n, k = len(problem.row_number), len(problem.code_number)
    if n == 0:
        return rows, key
    block_k, block_n = (64, 1024) if launch_target(key) == "interpreter" else (4, 128)
    with launch_device(key):
        # transposed, level below level: neighbours in memory are neighbours in a block
        x, codes = (
            torch.cat([level.t().to(problem.dtype) for level in levels]) for levels in (problem.x, problem.codes)
        )
        weights = torch.tensor(problem.weights, dtype=torch.float64, device=key.device)
        numbers = problem.row_number.contiguous(), problem.code_number.contiguous()
        kernels.draw[(-(-k // block_k),)](
            x, codes, weights, problem.usable, *numbers, rows, key, n, k,
            tuple(problem.dims), problem.metric, block_k, block_n, **PLAIN,
        )  # fmt: skip
    return rows, key
