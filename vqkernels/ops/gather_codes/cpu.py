"""Launcher of the C++ gather (csrc/cpu/gather_codes.cpp)."""

from __future__ import annotations

import torch

from vqkernels._core.extension import cpu_unsupported_reasons, extension


def unsupported_reasons(*args: object) -> list[str]:
    return cpu_unsupported_reasons(*args)


def run(codebook: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:  # [G, K, D], [N, G] -> [N, G, D]
    codebook, indices = codebook.contiguous(), indices.contiguous()
    n, g = indices.shape
    _, k, d = codebook.shape
    codes = codebook.new_empty(n, g, d)
    bad = extension().gather_codes(
        codebook.data_ptr(),
        codebook.element_size(),
        indices.data_ptr(),
        n,
        g,
        k,
        d,
        torch.get_num_threads(),
        codes.data_ptr(),
    )
    if bad is not None:
        raise IndexError(f"indices: expected values in [-1, {k}), got {bad}")
    return codes
