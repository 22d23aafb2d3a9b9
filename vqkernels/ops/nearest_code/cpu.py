"""Launcher of the C++ lookup (csrc/cpu/nearest_code.cpp)."""

from __future__ import annotations

import torch

from vqkernels._core.env import isa_code, kept_bytes
from vqkernels._core.extension import DTYPE_CODES, METRIC_CODES, cpu_unsupported_reasons, extension


def unsupported_reasons(*args: object) -> list[str]:
    return cpu_unsupported_reasons(*args)


def run(
    x: torch.Tensor,  # [N, G, D]
    codebook: torch.Tensor,  # [G, K, D]
    metric: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    x, codebook = x.contiguous(), codebook.contiguous()
    n, g, d = x.shape
    indices = torch.empty(n, g, dtype=torch.int64)
    distance = torch.empty(n, g, dtype=torch.float32)
    extension().nearest_code(
        x.data_ptr(),
        DTYPE_CODES[x.dtype],
        codebook.data_ptr(),
        DTYPE_CODES[codebook.dtype],
        n,
        g,
        codebook.shape[1],
        d,
        METRIC_CODES[metric],
        torch.get_num_threads(),
        isa_code(),
        kept_bytes(),
        indices.data_ptr(),
        distance.data_ptr(),
    )
    return indices, distance
