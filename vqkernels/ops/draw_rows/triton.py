"""Launcher of the Triton draw."""

from __future__ import annotations

from functools import reduce
from itertools import chain

import torch

from vqkernels._core.triton import (
    launch_device,
    launch_target,
    triton_by_name_only_reasons,
    triton_unsupported_reasons,
)

PLAIN = {"enable_fp_fusion": False}  # the canonical sums are defined without fused multiply-add


def unsupported_reasons(*args: object) -> list[str]:
    return triton_unsupported_reasons(*chain.from_iterable(a if isinstance(a, (list, tuple)) else [a] for a in args))


def by_name_only_reasons(*args: object) -> list[str]:
    return triton_by_name_only_reasons(*args)


def run(
    codes: list[torch.Tensor],  # L of [K, D_l]
    x: list[torch.Tensor],  # L of [N, D_l]
    weights: list[float],  # [L]
    metric: str,
    usable: torch.Tensor,  # [N] bool
    row_number: torch.Tensor,  # [N] int64
    code_number: torch.Tensor,  # [K] int64
) -> tuple[torch.Tensor, torch.Tensor]:
    from vqkernels.ops.draw_rows import triton_kernels as kernels

    n, k = x[0].shape[0], codes[0].shape[0]
    rows = torch.zeros(k, dtype=torch.int64, device=usable.device)
    key = torch.full((k,), torch.inf, dtype=torch.float64, device=usable.device)
    if n == 0:
        return rows, key
    dtype = reduce(torch.promote_types, (t.dtype for t in (*codes, *x)), torch.float32)
    dims = tuple(level.shape[1] for level in x)
    block_k, block_n = (64, 1024) if launch_target(x[0]) == "interpreter" else (4, 128)
    with launch_device(x[0]):
        # transposed, level below level: neighbours in memory are neighbours in a block
        points, book = (torch.cat([t.t().to(dtype) for t in levels]) for levels in (x, codes))
        factors = torch.tensor(weights, dtype=torch.float64, device=usable.device)
        kernels.draw[(-(-k // block_k),)](
            points, book, factors, usable, row_number.contiguous(), code_number.contiguous(), rows, key, n, k,
            dims, metric, block_k, block_n, **PLAIN,
        )  # fmt: skip
    return rows, key
