"""Launcher of the C++ passes (csrc/cpu/soft_entropy.cpp)."""

from __future__ import annotations

from typing import Any

import torch

from vqkernels._core.env import isa_code
from vqkernels._core.extension import DTYPE_CODES, cpu_unsupported_reasons, extension
from vqkernels.ops.soft_assignment_entropy.op import Assignment, Gradients, Problem, Upstream, gradient_dtype

METRIC_CODES = {"l2": 0, "cosine": 1, "dot": 2, "euclidean": 3}  # SoftMetric of csrc/cpu/soft_entropy.h


def unsupported_reasons(*args: object) -> list[str]:
    return cpu_unsupported_reasons(*args)


def run(problem: Problem) -> Assignment:
    problem = _contiguous(problem)
    least, log_sum, entropy = (torch.empty_like(problem.weight) for _ in range(3))
    assigned = torch.empty(problem.codebook.shape[:2], dtype=torch.float64)
    result = Assignment(least, log_sum, entropy, assigned)
    extension().soft_forward(_described(problem), *(t.data_ptr() for t in result))
    return result


def run_backward(problem: Problem, upstream: Upstream) -> Gradients:
    problem = _contiguous(problem)
    *given, (x_needed, codebook_needed, temperature_needed) = upstream
    grad_x = torch.empty(problem.x.shape, dtype=gradient_dtype(problem.x)) if x_needed else None
    grad_codebook = None
    if codebook_needed:
        grad_codebook = torch.empty(problem.codebook.shape, dtype=gradient_dtype(problem.codebook))
    grad_log = torch.empty_like(problem.weight) if temperature_needed else None
    extension().soft_backward(
        _described(problem),
        *(t.data_ptr() for t in given),
        *(0 if gradient is None else gradient.data_ptr() for gradient in (grad_x, grad_codebook, grad_log)),
    )
    return Gradients(grad_x, grad_codebook, None if grad_log is None else -grad_log.sum() / problem.temperature)


def _contiguous(problem: Problem) -> Problem:
    x, codebook, weight = (t.contiguous() for t in problem[:3])
    return problem._replace(x=x, codebook=codebook, weight=weight)


def _described(problem: Problem) -> Any:
    """The problem as csrc/cpu/soft_entropy.h sees it."""
    n, g, d = problem.x.shape
    return extension().SoftProblem(
        problem.x.data_ptr(),
        DTYPE_CODES[problem.x.dtype],
        problem.codebook.data_ptr(),
        DTYPE_CODES[problem.codebook.dtype],
        problem.weight.data_ptr(),
        n,
        g,
        problem.codebook.shape[1],
        d,
        METRIC_CODES[problem.metric],
        problem.temperature.item(),
        problem.floor,
        torch.get_num_threads(),
        isa_code(),
    )
