"""Launcher of the CUDA lookup (csrc/cuda/nearest_code.cu)."""

from __future__ import annotations

import torch

from vqkernels._core.extension import DTYPE_CODES, METRIC_CODES, cuda_unsupported_reasons, extension


def unsupported_reasons(*args: object) -> list[str]:
    return cuda_unsupported_reasons(*args)


def run(
    x: torch.Tensor,  # [N, G, D]
    codebook: torch.Tensor,  # [G, K, D]
    metric: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    x, codebook = x.contiguous(), codebook.contiguous()
    n, g, d = x.shape
    sizes = (n, g, codebook.shape[1], d)
    multiprocessors = torch.cuda.get_device_properties(x.device).multi_processor_count
    indices = torch.empty(n, g, dtype=torch.int64, device=x.device)
    distance = torch.empty(n, g, dtype=torch.float32, device=x.device)
    # freed when this returns, and reused no earlier than the kernels enqueued on the same stream have finished
    size = extension().nearest_code_cuda_workspace(*sizes, multiprocessors)
    workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
    with torch.cuda.device(x.device):
        extension().nearest_code_cuda(
            x.data_ptr(),
            DTYPE_CODES[x.dtype],
            codebook.data_ptr(),
            DTYPE_CODES[codebook.dtype],
            *sizes,
            METRIC_CODES[metric],
            indices.data_ptr(),
            distance.data_ptr(),
            workspace.data_ptr(),
            x.device.index,
            multiprocessors,
            torch.cuda.current_stream(x.device).cuda_stream,
        )
    return indices, distance
