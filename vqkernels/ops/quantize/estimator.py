"""How the gradient of a quantized vector reaches the vector it came from."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from vqkernels._core.checks import check_choice, check_floating, check_same_device
from vqkernels._core.library import is_traced
from vqkernels._core.shown import shape_of

GRADIENTS = ("ste", "rotation", "none")


class _StraightThrough(torch.autograd.Function):
    """Value of ``codes``; the gradient goes to both unchanged."""

    @staticmethod
    def forward(x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return codes.to(x.dtype, copy=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
        ctx.codes_dtype = inputs[1].dtype

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return grad, grad.to(ctx.codes_dtype)


class _Rotation(torch.autograd.Function):
    """Value of ``codes``, read as the rotated and rescaled ``x`` (Fifty et al. 2024, arXiv 2410.06424).

    With unit vectors u of x and v of the code, r = (u + v) / |u + v| and s = |code| / |x| held constant, the code
    equals s R x for R = I - 2 r r^T + 2 v u^T. Hence dx = s R^T g = s (g - 2 r (r.g) + 2 u (v.g)).
    """

    @staticmethod
    def forward(x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return codes.to(x.dtype, copy=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, codes = ctx.saved_tensors
        wide = torch.promote_types(x.dtype, torch.float32)
        u, v, r, scale, defined = _rotation(x.to(wide), codes.to(wide))
        grad_ = grad.to(wide)
        turned = grad_ - 2 * r * (r * grad_).sum(-1, keepdim=True) + 2 * u * (v * grad_).sum(-1, keepdim=True)
        dx = torch.where(defined, scale * turned, grad_)
        return dx.to(x.dtype), grad.to(codes.dtype)


def _rotation(x: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:  # [..., D] or [..., 1] each
    """u, v, r, s, and where they are defined."""
    x_norm, code_norm = x.norm(dim=-1, keepdim=True), codes.norm(dim=-1, keepdim=True)
    u, v = x / x_norm, codes / code_norm
    middle = u + v
    middle_norm = middle.norm(dim=-1, keepdim=True)
    # no rotation is defined for a zero vector or between opposite ones: straight through
    tiny = torch.finfo(x.dtype).tiny ** 0.5
    defined = (x_norm > tiny) & (code_norm > tiny) & (middle_norm > 1e-6)
    return u, v, middle / middle_norm, code_norm / x_norm, defined


def _of_operators(x: torch.Tensor, codes: torch.Tensor, gradient: str) -> torch.Tensor:
    """The same without any function of Python, which a trace that is to be saved cannot hold."""
    carrier = x
    if gradient == "rotation":
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        u, v, r, scale, defined = _rotation(wide.detach(), codes.detach().to(wide.dtype))
        turned = wide - 2 * r * (r * wide).sum(-1, keepdim=True) + 2 * v * (u * wide).sum(-1, keepdim=True)
        carrier = torch.where(defined, scale * turned, wide).to(x.dtype)
    return codes.to(x.dtype) + (carrier - carrier.detach())


def estimate_gradient(
    x: torch.Tensor,  # [..., D]
    codes: torch.Tensor,  # [..., D]
    gradient: str = "ste",
) -> torch.Tensor:  # [..., D], dtype of x
    """Return the values of ``codes`` with a gradient estimate to ``x``.

    Args:
        x: the vectors that were quantized, ``[..., D]``.
        codes: their codes, same shape. The plain gradient reaches them too; detach to stop it.
        gradient: ``"ste"`` (van den Oord et al. 2017), ``"rotation"`` (Fifty et al. 2024) or ``"none"`` (x gets
            no gradient).

    Returns:
        A tensor equal to ``codes``, in the dtype of ``x``.

    Raises:
        TypeError: if a tensor is not floating point.
        ValueError: on different shapes or devices, or an unknown ``gradient``.

    Example:
        >>> import torch, vqkernels
        >>> x = torch.tensor([0.2, 0.9], requires_grad=True)
        >>> vqkernels.estimate_gradient(x, x.detach().round()).sum().backward()
        >>> x.grad
        tensor([1., 1.])
    """
    check_floating("x", x)
    check_floating("codes", codes)
    check_choice("gradient", gradient, GRADIENTS)
    check_same_device(x=x, codes=codes)
    if x.shape != codes.shape:
        raise ValueError(f"codes: expected the shape of x {shape_of(x)}, got {shape_of(codes)}")
    if gradient == "none":
        return codes.to(x.dtype)
    if is_traced():
        return _of_operators(x, codes, gradient)
    function = _StraightThrough if gradient == "ste" else _Rotation
    result: torch.Tensor = function.apply(x, codes)  # type: ignore[no-untyped-call]
    return result
