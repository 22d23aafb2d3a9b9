"""Launcher of the Triton measurement."""

from __future__ import annotations

import torch

from vqkernels._core.triton import (
    block_of,
    launch_device,
    launch_target,
    triton_by_name_only_reasons,
    triton_unsupported_reasons,
)


def unsupported_reasons(*args: object) -> list[str]:
    return triton_unsupported_reasons(*args)


def by_name_only_reasons(*args: object) -> list[str]:
    return triton_by_name_only_reasons(*args)


def run(
    x: torch.Tensor,  # [N, G, D]
    indices: torch.Tensor,  # [N, G]
    weight: torch.Tensor | None,  # [N, G]
    skip_nonfinite: bool,
) -> torch.Tensor:  # [G, 4] int64
    from vqkernels.ops.code_range import triton_kernels as kernels

    n, g, d = x.shape
    found = torch.zeros(g, 4, dtype=torch.int64, device=x.device)
    found[:, :2] = -1022
    if n == 0:
        return found
    factor = x if weight is None else weight
    block_n, block_d = 1024 if launch_target(x) == "interpreter" else 128, block_of(d, 32)
    with launch_device(x):
        kernels.measure_rows[(-(-n // block_n), g)](
            x, indices, factor, found, n, *x.stride(), *indices.stride(), *factor.stride()[:2],
            d, weight is not None, skip_nonfinite, block_n, block_d,
        )  # fmt: skip
    return found
