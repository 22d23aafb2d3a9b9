"""Launcher of the C++ EMA update (csrc/cpu/ema_update.cpp)."""

from __future__ import annotations

import torch

from vqkernels._core.extension import DTYPE_CODES, cpu_unsupported_reasons, extension


def unsupported_reasons(*args: object) -> list[str]:
    return cpu_unsupported_reasons(*args)


def run(
    codebook: torch.Tensor,  # [G, K, D]
    cluster_size: torch.Tensor,  # [G, K]
    embed_sum: torch.Tensor,  # [G, K, D]
    count: torch.Tensor,  # [G, K]
    total: torch.Tensor,  # [G, K, D]
    decay: float,
    eps: float,
    normalize: bool,
) -> None:
    count, total = count.contiguous(), total.contiguous()
    extension().ema_update(
        codebook.data_ptr(),
        cluster_size.data_ptr(),
        embed_sum.data_ptr(),
        count.data_ptr(),
        total.data_ptr(),
        DTYPE_CODES[codebook.dtype],
        *codebook.shape,
        decay,
        eps,
        normalize,
        torch.get_num_threads(),
    )
    # autograd does not see writes through a pointer; a backward that needs the old values must raise
    torch.autograd.graph.increment_version((codebook, cluster_size, embed_sum))
