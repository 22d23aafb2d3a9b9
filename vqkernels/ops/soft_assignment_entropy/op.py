"""Operator ``vqkernels::soft_assignment_entropy``, its backward, and the autograd formula that joins them.

What both directions share beside their tensors is, per vector, the least distance (cosine: least -cos) and
``log_sum = log sum_k exp((least - distance) / temperature)``: with them every probability can be computed anew.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, cast

import torch

from vqkernels._core.backend import register_backends, select
from vqkernels._core.library import define_op, register_autograd

register_backends(
    "soft_assignment_entropy",
    triton="vqkernels.ops.soft_assignment_entropy.triton",
    cpu="vqkernels.ops.soft_assignment_entropy.cpu",
    reference="vqkernels.ops.soft_assignment_entropy.reference",
)


class Problem(NamedTuple):
    """What both directions work on: the arguments of the operator, in its order."""

    x: torch.Tensor  # [N, G, D]
    codebook: torch.Tensor  # [G, K, D]
    weight: torch.Tensor  # [N, G] float64, at least 0; a vector of weight 0 is left out
    temperature: torch.Tensor  # [] float64
    metric: str
    floor: float  # log p is not taken below it; -inf for plain entropies


class Assignment(NamedTuple):
    """What the forward returns; all float64."""

    least: torch.Tensor  # [N, G]; a backend may keep more for its backward in the storage behind it
    log_sum: torch.Tensor  # [N, G]
    entropy: torch.Tensor  # [N, G]
    assigned: torch.Tensor  # [G, K] weighted sums of p


class Upstream(NamedTuple):
    """What the backward works on beside the problem: the forward's rows, and what reached its results."""

    least: torch.Tensor  # [N, G]
    log_sum: torch.Tensor  # [N, G]
    entropy: torch.Tensor  # [N, G]
    grad_entropy: torch.Tensor  # [N, G] float64
    grad_assigned: torch.Tensor  # [G, K] float64
    needed: list[bool]  # gradients of x, codebook, temperature


class Gradients(NamedTuple):
    """None where it was not needed."""

    x: torch.Tensor | None  # [N, G, D] of gradient_dtype
    codebook: torch.Tensor | None  # [G, K, D] of gradient_dtype
    temperature: torch.Tensor | None  # [] float64


class _Backend(Protocol):
    """Both directions of one backend."""

    def run(self, problem: Problem, remember: bool) -> Assignment: ...

    def run_backward(self, problem: Problem, upstream: Upstream) -> Gradients: ...


def gradient_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _backend(name: str | None, problem: Problem) -> _Backend:
    return cast(_Backend, select("soft_assignment_entropy", name, *problem))


def _forward(*args: Any) -> Assignment:
    *fields, remember, backend = args
    problem = Problem(*fields)
    return _backend(backend, problem).run(problem, remember)


def _forward_fake(*args: Any) -> Assignment:
    *fields, _, _ = args
    x, codebook, *_ = Problem(*fields)
    shapes = (*[x.shape[:2]] * 3, codebook.shape[:2])
    return Assignment(*(x.new_empty(shape, dtype=torch.float64) for shape in shapes))


def _split(args: tuple[Any, ...]) -> tuple[Problem, Upstream, str | None]:
    size = len(Problem._fields)
    least, log_sum, entropy, grad_entropy, grad_assigned, needed, backend = args[size:]
    upstream = Upstream(least, log_sum, entropy, grad_entropy, grad_assigned, needed)
    return Problem(*args[:size]), upstream, backend


def _backward(*args: Any) -> tuple[torch.Tensor, ...]:
    problem, upstream, backend = _split(args)
    gradients = _backend(backend, problem).run_backward(problem, upstream)
    # one that is not needed comes back empty
    return tuple(problem.x.new_empty(0) if g is None else g for g in gradients)


def _backward_fake(*args: Any) -> tuple[torch.Tensor, ...]:
    problem, upstream, _ = _split(args)
    dtypes = (gradient_dtype(problem.x), gradient_dtype(problem.codebook), torch.float64)
    likes = zip((problem.x, problem.codebook, problem.temperature), dtypes, upstream.needed, strict=True)
    return tuple(t.new_empty(t.shape, dtype=dtype) if need else t.new_empty(0) for t, dtype, need in likes)


soft_assignment_entropy_op = define_op(
    "soft_assignment_entropy(Tensor x, Tensor codebook, Tensor weight, Tensor temperature, str metric, float floor, "
    "bool remember, str? backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
_backward_op = define_op(
    "soft_assignment_entropy_backward(Tensor x, Tensor codebook, Tensor weight, Tensor temperature, str metric, "
    "float floor, Tensor least, Tensor log_sum, Tensor entropy, Tensor grad_entropy, Tensor grad_assigned, "
    "bool[] needed, str? backend) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    *tensors, ctx.metric, ctx.floor, _, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(
    ctx: Any, _least: torch.Tensor, _log_sum: torch.Tensor, grad_entropy: torch.Tensor, grad_assigned: torch.Tensor
) -> tuple[Any, ...]:
    x, codebook, weight, temperature, least, log_sum, entropy, assigned = ctx.saved_tensors
    needed = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
    # a constant per group changes no gradient, and rounds less if it is their mean
    mean = (grad_assigned * assigned).sum(1, keepdim=True) / assigned.sum(1, keepdim=True).clamp(min=1e-300)
    problem = Problem(x, codebook, weight, temperature, ctx.metric, ctx.floor)
    upstream = Upstream(least, log_sum, entropy, grad_entropy.contiguous(), grad_assigned - mean, needed)
    gradients = _backward_op(*problem, *upstream, ctx.backend)
    likes = (x, codebook, temperature)
    dx, dc, dt = (g.to(t.dtype) if need else None for g, t, need in zip(gradients, likes, needed, strict=True))
    return dx, dc, None, dt, None, None, None, None


def _refuse_second(ctx: Any, *grads: torch.Tensor) -> None:
    raise NotImplementedError("soft_assignment_entropy: expected one backward, got a second derivative")


register_autograd("soft_assignment_entropy", _differentiate, _setup_context)
register_autograd("soft_assignment_entropy_backward", _refuse_second, lambda ctx, inputs, output: None)
