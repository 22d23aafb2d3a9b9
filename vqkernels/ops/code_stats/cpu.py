"""Launcher of the C++ statistics (csrc/cpu/code_stats.cpp)."""

from __future__ import annotations

import torch

from vqkernels._core.extension import DTYPE_CODES, cpu_unsupported_reasons, extension
from vqkernels.ops.code_stats.op import result_dtypes

# the vectors of a code are measured right before they are summed, while they are at hand
MEASURES = True


def unsupported_reasons(*args: object) -> list[str]:
    return cpu_unsupported_reasons(*args)


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
    x, indices = x.contiguous(), indices.contiguous()
    n, g, d = x.shape
    factor = None if weight is None else weight.double().contiguous()
    grid = None if grid is None else grid.contiguous()
    of_count, of_total = result_dtypes(x, as_integers)
    count = torch.empty(g, num_codes, dtype=of_count)
    total = torch.empty(g, num_codes, d, dtype=of_total)
    bad = extension().code_stats(
        x.data_ptr(),
        DTYPE_CODES[x.dtype],
        indices.data_ptr(),
        0 if factor is None else factor.data_ptr(),
        n,
        g,
        num_codes,
        d,
        skip_nonfinite,
        torch.get_num_threads(),
        0 if grid is None else grid.data_ptr(),
        deterministic,
        as_integers,
        count.data_ptr(),
        total.data_ptr(),
    )
    if bad is not None:
        raise IndexError(f"indices: expected values in [-1, {num_codes}), got {bad}")
    return count, total
