"""Operator ``vqkernels::soft_assignment_entropy``, its backward, and the autograd formula that joins them.

What both directions share beside their tensors is, per vector, the least distance (cosine: least -cos) and
``log_sum = log sum_k exp((least - distance) / temperature)``: with them every probability can be computed anew.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch

from vqkernels._core.backend import register_backends, select
from vqkernels._core.library import define_op, register_autograd

register_backends(
    "soft_assignment_entropy",
    triton="vqkernels.ops.soft_assignment_entropy.triton",
    cpu="vqkernels.ops.soft_assignment_entropy.cpu",
    reference="vqkernels.ops.soft_assignment_entropy.reference",
)

Gradients = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


class _Backend(Protocol):
    """A backend module of this op has the backward beside the usual two functions."""

    def run_backward(self, *args: Any) -> Gradients: ...


def gradient_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _forward(
    x: torch.Tensor,  # [N, G, D]
    codebook: torch.Tensor,  # [G, K, D]
    weight: torch.Tensor,  # [N, G] float64, at least 0; a vector of weight 0 is left out
    temperature: torch.Tensor,  # [] float64
    metric: str,
    floor: float,  # log p is not taken below it; -inf for plain entropies
    backend: str | None,
) -> tuple[torch.Tensor, ...]:  # least, log_sum, entropy [N, G]; assigned [G, K]; all float64
    module = select("soft_assignment_entropy", backend, x, codebook, weight, temperature, metric, floor)
    least, log_sum, entropy, assigned = module.run(x, codebook, weight, temperature, metric, floor)
    return least, log_sum, entropy, assigned


def _forward_fake(
    x: torch.Tensor,
    codebook: torch.Tensor,
    weight: torch.Tensor,
    temperature: torch.Tensor,
    metric: str,
    floor: float,
    backend: str | None,
) -> tuple[torch.Tensor, ...]:
    shapes = (*[x.shape[:2]] * 3, codebook.shape[:2])
    return tuple(x.new_empty(shape, dtype=torch.float64) for shape in shapes)


def _backward(
    x: torch.Tensor,
    codebook: torch.Tensor,
    weight: torch.Tensor,
    temperature: torch.Tensor,
    metric: str,
    floor: float,
    least: torch.Tensor,  # [N, G], with the next two as returned by the forward
    log_sum: torch.Tensor,  # [N, G]
    entropy: torch.Tensor,  # [N, G]
    grad_entropy: torch.Tensor,  # [N, G] float64
    grad_assigned: torch.Tensor,  # [G, K] float64
    needed: list[bool],  # gradients of x, codebook, temperature; one that is not needed comes back empty
    backend: str | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    problem = (x, codebook, weight, temperature, metric, floor)
    module = cast(_Backend, select("soft_assignment_entropy", backend, *problem))
    gradients = module.run_backward(*problem, least, log_sum, entropy, grad_entropy, grad_assigned, *needed)
    return tuple(x.new_empty(0) if g is None else g for g in gradients)  # type: ignore[return-value]


def _backward_fake(
    x: torch.Tensor,
    codebook: torch.Tensor,
    weight: torch.Tensor,
    temperature: torch.Tensor,
    metric: str,
    floor: float,
    least: torch.Tensor,
    log_sum: torch.Tensor,
    entropy: torch.Tensor,
    grad_entropy: torch.Tensor,
    grad_assigned: torch.Tensor,
    needed: list[bool],
    backend: str | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    like = ((x, gradient_dtype(x)), (codebook, gradient_dtype(codebook)), (temperature, torch.float64))
    pairs = zip(like, needed, strict=True)
    made = [t.new_empty(t.shape, dtype=dtype) if need else x.new_empty(0) for (t, dtype), need in pairs]
    return made[0], made[1], made[2]


soft_assignment_entropy_op = define_op(
    "soft_assignment_entropy(Tensor x, Tensor codebook, Tensor weight, Tensor temperature, str metric, float floor, "
    "str? backend) -> (Tensor, Tensor, Tensor, Tensor)",
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
    *tensors, ctx.metric, ctx.floor, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(
    ctx: Any, _least: torch.Tensor, _log_sum: torch.Tensor, grad_entropy: torch.Tensor, grad_assigned: torch.Tensor
) -> tuple[Any, ...]:
    x, codebook, weight, temperature, least, log_sum, entropy, assigned = ctx.saved_tensors
    needed = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
    # a constant per group changes no gradient, and rounds less if it is their mean
    mean = (grad_assigned * assigned).sum(1, keepdim=True) / assigned.sum(1, keepdim=True).clamp(min=1e-300)
    gradients = _backward_op(
        x,
        codebook,
        weight,
        temperature,
        ctx.metric,
        ctx.floor,
        least,
        log_sum,
        entropy,
        grad_entropy.contiguous(),
        grad_assigned - mean,
        needed,
        ctx.backend,
    )
    likes = (x, codebook, temperature)
    dx, dc, dt = (g.to(t.dtype) if need else None for g, t, need in zip(gradients, likes, needed, strict=True))
    return dx, dc, None, dt, None, None, None


def _refuse_second(ctx: Any, *grads: torch.Tensor) -> None:
    raise NotImplementedError("soft_assignment_entropy: expected one backward, got a second derivative")


register_autograd("soft_assignment_entropy", _differentiate, _setup_context)
register_autograd("soft_assignment_entropy_backward", _refuse_second, lambda ctx, inputs, output: None)
