"""Launcher of the C++ passes (csrc/cpu/soft_entropy.cpp)."""

from __future__ import annotations

from typing import Any

import torch

from vqkernels._core.env import isa_code
from vqkernels._core.extension import DTYPE_CODES, cpu_unsupported_reasons, extension
from vqkernels.ops.soft_assignment_entropy.op import Gradients, gradient_dtype

METRIC_CODES = {"l2": 0, "cosine": 1, "dot": 2, "euclidean": 3}  # SoftMetric of csrc/cpu/soft_entropy.h


def unsupported_reasons(*args: object) -> list[str]:
    return cpu_unsupported_reasons(*args)


def run(
    x: torch.Tensor,  # [N, G, D]
    codebook: torch.Tensor,  # [G, K, D]
    weight: torch.Tensor,  # [N, G] float64
    temperature: torch.Tensor,  # []
    metric: str,
    floor: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    x, codebook, weight = x.contiguous(), codebook.contiguous(), weight.contiguous()
    least, log_sum, entropy = (torch.empty_like(weight) for _ in range(3))
    assigned = torch.empty(codebook.shape[:2], dtype=torch.float64)
    extension().soft_forward(
        _problem(x, codebook, weight, temperature, metric, floor),
        least.data_ptr(),
        log_sum.data_ptr(),
        entropy.data_ptr(),
        assigned.data_ptr(),
    )
    return least, log_sum, entropy, assigned


def run_backward(
    x: torch.Tensor,  # [N, G, D]
    codebook: torch.Tensor,  # [G, K, D]
    weight: torch.Tensor,  # [N, G] float64
    temperature: torch.Tensor,  # []
    metric: str,
    floor: float,
    least: torch.Tensor,  # [N, G] float64
    log_sum: torch.Tensor,  # [N, G] float64
    entropy: torch.Tensor,  # [N, G] float64
    grad_entropy: torch.Tensor,  # [N, G] float64
    grad_assigned: torch.Tensor,  # [G, K] float64
    x_needed: bool,
    codebook_needed: bool,
    temperature_needed: bool,
) -> Gradients:
    x, codebook, weight = (t.contiguous() for t in (x, codebook, weight))
    grad_x = torch.empty(x.shape, dtype=gradient_dtype(x)) if x_needed else None
    grad_codebook = torch.empty(codebook.shape, dtype=gradient_dtype(codebook)) if codebook_needed else None
    grad_log = torch.empty_like(weight) if temperature_needed else None
    extension().soft_backward(
        _problem(x, codebook, weight, temperature, metric, floor),
        least.data_ptr(),
        log_sum.data_ptr(),
        entropy.data_ptr(),
        grad_entropy.data_ptr(),
        grad_assigned.data_ptr(),
        *(0 if gradient is None else gradient.data_ptr() for gradient in (grad_x, grad_codebook, grad_log)),
    )
    return grad_x, grad_codebook, None if grad_log is None else -grad_log.sum() / temperature


def _problem(
    x: torch.Tensor,
    codebook: torch.Tensor,
    weight: torch.Tensor,
    temperature: torch.Tensor,
    metric: str,
    floor: float,
) -> Any:
    n, g, d = x.shape
    return extension().SoftProblem(
        x.data_ptr(),
        DTYPE_CODES[x.dtype],
        codebook.data_ptr(),
        DTYPE_CODES[codebook.dtype],
        weight.data_ptr(),
        n,
        g,
        codebook.shape[1],
        d,
        METRIC_CODES[metric],
        temperature.item(),
        floor,
        torch.get_num_threads(),
        isa_code(),
    )
