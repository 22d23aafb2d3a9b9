"""Launcher of the C++ lookup in levels (csrc/cpu/multilevel.cpp)."""

from __future__ import annotations

from functools import reduce

import torch

from vqkernels._core.env import isa_code
from vqkernels._core.extension import DTYPE_CODES, cpu_unsupported_reasons, extension


def unsupported_reasons(*args: object) -> list[str]:
    return cpu_unsupported_reasons(*args)


def run(
    xs: list[torch.Tensor],  # L of [N, D_l]
    codebooks: list[torch.Tensor],  # L of [K, D_l]
    weights: list[float],
    squared: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    # the kernel reads one dtype; widening is exact
    dtype = reduce(torch.promote_types, (t.dtype for t in (*xs, *codebooks)), torch.float32)
    xs, codebooks = ([t.to(dtype).contiguous() for t in tensors] for tensors in (xs, codebooks))
    n, k = xs[0].shape[0], codebooks[0].shape[0]
    indices = torch.empty(n, dtype=torch.int64)
    distance = torch.empty(n, dtype=torch.float32)
    extension().multilevel_nearest_code(
        [x.data_ptr() for x in xs],
        [codebook.data_ptr() for codebook in codebooks],
        DTYPE_CODES[dtype],
        [x.shape[1] for x in xs],
        weights,
        n,
        k,
        squared,
        torch.get_num_threads(),
        isa_code(),
        indices.data_ptr(),
        distance.data_ptr(),
    )
    return indices, distance
