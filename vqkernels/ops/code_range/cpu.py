"""Launcher of the C++ measurement (csrc/cpu/code_range.cpp)."""

from __future__ import annotations

import torch

from vqkernels._core.extension import DTYPE_CODES, cpu_unsupported_reasons, extension


def unsupported_reasons(*args: object) -> list[str]:
    return cpu_unsupported_reasons(*args)


def run(
    x: torch.Tensor,  # [N, G, D]
    indices: torch.Tensor,  # [N, G]
    num_codes: int,
    weight: torch.Tensor | None,  # [N, G]
    skip_nonfinite: bool,
) -> torch.Tensor:  # [G, K, 4] int64
    x, indices = x.contiguous(), indices.contiguous()
    factor = None if weight is None else weight.double().contiguous()
    n, g, d = x.shape
    found = torch.empty(g, num_codes, 4, dtype=torch.int64)
    bad = extension().code_range(
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
        found.data_ptr(),
    )
    if bad is not None:
        raise IndexError(f"indices: expected values in [-1, {num_codes}), got {bad}")
    return found
