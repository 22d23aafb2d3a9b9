"""Launcher of the Triton measurement."""

from __future__ import annotations

import torch

from vqkernels._core.checks import check_index_values
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
    num_codes: int,
    weight: torch.Tensor | None,  # [N, G]
    skip_nonfinite: bool,
) -> torch.Tensor:  # [G, K, 4] int64
    from vqkernels.ops.code_range import triton_kernels as kernels

    check_index_values("indices", indices, num_codes)
    n, g, d = x.shape
    exponents = torch.full((g, num_codes, 2), -1022, dtype=torch.int64, device=x.device)
    numbers = torch.zeros(g, 1, 2, dtype=torch.int64, device=x.device)
    factor = x if weight is None else weight
    block_n, block_d = 256 if launch_target(x) == "interpreter" else 64, block_of(d, 16)
    if n > 0:
        with launch_device(x):
            kernels.measure_rows[(-(-n // block_n), g)](
                x, indices, factor, exponents, numbers, n, num_codes,
                *x.stride(), *indices.stride(), *factor.stride()[:2],
                d, weight is not None, skip_nonfinite, block_n, block_d,
            )  # fmt: skip
    return torch.cat([exponents, numbers.expand(-1, num_codes, -1)], dim=2)
