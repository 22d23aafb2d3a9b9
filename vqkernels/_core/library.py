"""Registration of operators with torch, in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIB = torch.library.Library("vqkernels", "DEF")


def define_op(
    schema: str, implementation: Callable[..., Any], fake: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Register one operator for every device and return its bound overload.

    ``implementation`` picks its backend itself, at run time, where ``torch.compile`` does not look. A mutating
    operator returns nothing, so its fake does nothing.
    """
    name = schema[: schema.index("(")]
    _LIB.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIB.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vqkernels::{name}", fake or (lambda *_: None), lib=_LIB)
    overload: Callable[..., Any] = getattr(torch.ops.vqkernels, name).default
    return overload


def saveable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy of one made in inference mode, which autograd refuses to save for a backward."""
    if torch.compiler.is_compiling() or not tensor.is_inference() or torch.is_inference_mode_enabled():
        return tensor
    return tensor.clone()


def register_autograd(name: str, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
    """Attach a backward formula to an operator defined with :func:`define_op`."""
    torch.library.register_autograd(f"vqkernels::{name}", backward, setup_context=setup_context, lib=_LIB)


def is_traced() -> bool:
    """Whether ``torch.jit.trace`` is at work; what it saves cannot hold a function of Python."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]
