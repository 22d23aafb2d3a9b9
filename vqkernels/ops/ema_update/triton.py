"""Launcher of the Triton EMA update."""

from __future__ import annotations

import struct

import torch

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
    codebook: torch.Tensor,  # [G, K, D]
    cluster_size: torch.Tensor,  # [G, K]
    embed_sum: torch.Tensor,  # [G, K, D]
    count: torch.Tensor,  # [G, K]
    total: torch.Tensor,  # [G, K, D]
    decay: float,
    eps: float,
    normalize: bool,
) -> None:
    from vqkernels.ops.ema_update import triton_kernels as kernels

    g, k, d = codebook.shape
    count, total = count.contiguous(), total.contiguous()
    moved = torch.empty(g, k, dtype=torch.int8, device=codebook.device)
    block_d = block_of(d, 128)
    block = 4096 if launch_target(codebook) == "interpreter" else max(16, 2048 // block_d)
    with launch_device(codebook):
        kernels.move_statistics[(-(-g * k // block),)](
            cluster_size, embed_sum, count, total, moved, g * k, _bits(decay), _bits(1 - decay), d, block, block_d,
            enable_fp_fusion=False,
        )  # fmt: skip
        size_of_all = cluster_size.double().sum(dim=1)
        kernels.write_codes[(-(-k // block), g)](
            codebook, cluster_size, embed_sum, moved, size_of_all, k, _bits(eps),
            d, eps > 0, normalize, block, block_d, enable_fp_fusion=False,
        )  # fmt: skip
    # autograd does not see writes through a pointer; a backward that needs the old values must raise
    torch.autograd.graph.increment_version((codebook, cluster_size, embed_sum))


def _bits(value: float) -> int:
    """A float64 as the integer that a kernel makes it from."""
    bits: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return bits
