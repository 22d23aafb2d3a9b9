"""Launcher of the Triton statistics."""

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
from vqkernels.ops.code_stats.op import result_dtypes


def unsupported_reasons(*args: object) -> list[str]:
    return triton_unsupported_reasons(*args)


def by_name_only_reasons(*args: object) -> list[str]:
    return triton_by_name_only_reasons(*args)


def run(
    x: torch.Tensor,  # [N, G, D]
    indices: torch.Tensor,  # [N, G]
    num_codes: int,
    weight: torch.Tensor | None,  # [N, G]
    grid: torch.Tensor | None,  # [G, K, 4]
    deterministic: bool,
    as_integers: bool,
    skip_nonfinite: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    from vqkernels.ops.code_stats import triton_kernels as kernels

    check_index_values("indices", indices, num_codes)
    (n, g, d), fixed, weighted = x.shape, deterministic, weight is not None
    of_count, of_total = result_dtypes(x, fixed)
    count = torch.zeros(g, num_codes, dtype=of_count, device=x.device)
    total = torch.zeros(g, num_codes, d, dtype=of_total, device=x.device)
    factor = x if weight is None else weight
    ranges = count if grid is None else grid.contiguous()
    block_n, block_d = 256 if launch_target(x) == "interpreter" else 64, block_of(d, 16)
    blocks = (-(-n // block_n), g)
    strides = (*x.stride(), *indices.stride(), *factor.stride()[:2])
    with launch_device(x):
        if n > 0:
            kernels.add_rows[blocks](
                x, indices, factor, ranges, count, total, n, num_codes, *strides,
                d, fixed, weighted, skip_nonfinite, block_n, block_d,
            )  # fmt: skip
        if fixed and not as_integers:
            of_count, of_total = result_dtypes(x, as_integers)
            sums, count, total = (
                (count, total),
                count.new_empty(count.shape, dtype=of_count),
                total.new_empty(total.shape, dtype=of_total),
            )
            block = 4096 if launch_target(x) == "interpreter" else 1024
            kernels.round_sums[(-(-num_codes * d // block), g)](
                ranges, *sums, count, total, num_codes, num_codes * d, d, weighted, block
            )
        if n > 0 and not skip_nonfinite and not as_integers:
            kernels.mark_lost[blocks](
                x, indices, factor, total, n, num_codes, *strides, d, weighted, block_n, block_d
            )
    return count, total
