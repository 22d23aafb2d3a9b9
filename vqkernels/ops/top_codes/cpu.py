"""Launcher of the C++ top-M lookup (csrc/cpu/top_codes.cpp)."""

from __future__ import annotations

import torch

from vqkernels._core.env import isa_code
from vqkernels._core.extension import DTYPE_CODES, METRIC_CODES, cpu_unsupported_reasons, extension


def unsupported_reasons(*args: object) -> list[str]:
    return cpu_unsupported_reasons(*args)


def run(
    x: torch.Tensor,  # [N, G, D]
    codebook: torch.Tensor,  # [G, K, D]
    m: int,
    metric: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    x, codebook = x.contiguous(), codebook.contiguous()
    n, g, d = x.shape
    indices = torch.empty(n, g, m, dtype=torch.int64)
    distance = torch.empty(n, g, m, dtype=torch.float32)
    extension().top_codes(
        x.data_ptr(),
        DTYPE_CODES[x.dtype],
        codebook.data_ptr(),
        DTYPE_CODES[codebook.dtype],
        n,
        g,
        codebook.shape[1],
        d,
        m,
        METRIC_CODES[metric],
        torch.get_num_threads(),
        isa_code(),
        indices.data_ptr(),
        distance.data_ptr(),
    )
    return indices, distance
