"""Launcher of the CUDA lookup (csrc/cuda/nearest_code.cu)."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vqkernels._core.extension import DTYPE_CODES, METRIC_CODES, cuda_unsupported_reasons, extension
from vqkernels._core.triton import triton_unsupported_reasons


class Measured(NamedTuple):
    """Shapes on which these kernels beat Triton's, and the benchmark result that shows it."""

    capability: tuple[int, int]
    dim: tuple[int, int]  # smallest and largest D
    fewest_codes: int
    source: str  # a file in bench/results

    def covers(self, codebook: torch.Tensor) -> bool:  # [G, K, D]
        _, k, d = codebook.shape
        here = torch.cuda.get_device_capability(codebook.device)
        return here == self.capability and self.dim[0] <= d <= self.dim[1] and k >= self.fewest_codes


MEASURED_FASTER: tuple[Measured, ...] = ()  # nothing is measured yet


def unsupported_reasons(*args: object) -> list[str]:
    return cuda_unsupported_reasons(*args)


def by_name_only_reasons(*args: object) -> list[str]:
    """Where Triton can run too, it goes first unless a measurement says otherwise."""
    codebooks = [arg for arg in args if isinstance(arg, torch.Tensor)][1:]
    faster = any(measured.covers(codebook) for measured in MEASURED_FASTER for codebook in codebooks)
    return [] if faster or triton_unsupported_reasons(*args) else ["not measured faster than triton on this shape"]


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
