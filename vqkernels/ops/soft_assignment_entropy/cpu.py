"""Launcher of the C++ passes (csrc/cpu/soft_entropy.cpp)."""

from __future__ import annotations

from typing import Any

import torch

from vqkernels._core.env import isa_code, pairs_bytes
from vqkernels._core.extension import DTYPE_CODES, cpu_unsupported_reasons, extension
from vqkernels.ops.soft_assignment_entropy.op import Assignment, Gradients, Problem, Upstream, gradient_dtype

_MARK = 8  # numbers of 8 bytes
_SIGNATURE = int.from_bytes(b"pairs of", "big")
METRIC_CODES = {"l2": 0, "cosine": 1, "dot": 2, "euclidean": 3}  # SoftMetric of csrc/cpu/soft_entropy.h


def unsupported_reasons(*args: object) -> list[str]:
    return cpu_unsupported_reasons(*args)


def run(problem: Problem, remember: bool = False) -> Assignment:
    problem = _contiguous(problem)
    described = _described(problem)
    least, log_sum, entropy = (torch.empty_like(problem.weight) for _ in range(3))
    size, pairs = extension().soft_pairs_bytes(described), None
    if remember and 0 < size <= pairs_bytes():
        least, pairs = _with_pairs(problem, size)
    assigned = torch.empty(problem.codebook.shape[:2], dtype=torch.float64)
    result = Assignment(least, log_sum, entropy, assigned)
    extension().soft_forward(described, *(t.data_ptr() for t in result), _address(pairs))
    return result


def run_backward(problem: Problem, upstream: Upstream) -> Gradients:
    problem = _contiguous(problem)
    *given, (x_needed, codebook_needed, temperature_needed) = upstream
    grad_x = torch.empty(problem.x.shape, dtype=gradient_dtype(problem.x)) if x_needed else None
    grad_codebook = None
    if codebook_needed:
        grad_codebook = torch.empty(problem.codebook.shape, dtype=gradient_dtype(problem.codebook))
    grad_log = torch.empty_like(problem.weight) if temperature_needed else None
    described = _described(problem)
    pairs = _pairs_of(problem, upstream.least, extension().soft_pairs_bytes(described))
    extension().soft_backward(
        described,
        *(t.data_ptr() for t in given),
        *(_address(t) for t in (pairs, grad_x, grad_codebook, grad_log)),
    )
    return Gradients(grad_x, grad_codebook, None if grad_log is None else -grad_log.sum() / problem.temperature)


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _with_pairs(problem: Problem, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``least``, and room for pairs in the storage behind it, after a mark, so that they live as long.

    Shapes, which a compiler must know beforehand, then do not depend on how much is remembered.
    """
    rows = problem.weight.numel()
    storage = torch.empty(rows + _MARK + size // 8, dtype=torch.float64).untyped_storage()
    mark = _mark(problem, storage, size)
    _part(storage, rows, _MARK, torch.int64).copy_(torch.tensor(mark))
    least = torch.empty(0, dtype=torch.float64).set_(storage, 0, problem.weight.shape, problem.weight.stride())
    return least, _part(storage, rows + _MARK, size // 8)


def _pairs_of(problem: Problem, least: torch.Tensor, size: int) -> torch.Tensor | None:
    """The pairs behind ``least``; None if it has none, as a copy of it has not."""
    storage, rows = least.untyped_storage(), problem.weight.numel()
    if not size or least.storage_offset() or storage.nbytes() != 8 * (rows + _MARK) + size:
        return None
    if _part(storage, rows, _MARK, torch.int64).tolist() != _mark(problem, storage, size):
        return None
    return _part(storage, rows + _MARK, size // 8)


def _part(
    storage: torch.UntypedStorage, first: int, count: int, dtype: torch.dtype = torch.float64
) -> torch.Tensor:  # [count], of 8 bytes each
    return torch.empty(0, dtype=dtype).set_(storage, first, (count,), (1,))


def _mark(problem: Problem, storage: torch.UntypedStorage, size: int) -> list[int]:
    """What no other storage starts its pairs with: its own address, and what decides their layout."""
    return [_SIGNATURE, storage.data_ptr(), *problem.x.shape, problem.codebook.shape[1], size, isa_code()]


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
