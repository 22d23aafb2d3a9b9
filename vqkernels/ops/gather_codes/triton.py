"""Launcher of the Triton gather."""

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


def run(codebook: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:  # [G, K, D], [N, G] -> [N, G, D]
    from vqkernels.ops.gather_codes import triton_kernels as kernels

    g, k, d = codebook.shape
    check_index_values("indices", indices, k)
    codes = codebook.new_empty(*indices.shape, d)
    if codes.numel() == 0:
        return codes
    block_d = block_of(d, 128)
    block = 4096 if launch_target(codebook) == "interpreter" else max(16, 2048 // block_d)
    with launch_device(codebook):
        kernels.copy_codes[(-(-indices.numel() // block),)](
            codebook, indices, codes, indices.numel(), k, g, *codebook.stride(), *indices.stride(), d, block, block_d
        )
    return codes
