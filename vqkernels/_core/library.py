"""Registration of operators with torch, in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vqkernels._core.backend import requested_backend
from vqkernels._core.devices import through_the_cpu, unserved_device

_LIB = torch.library.Library("vqkernels", "DEF")


def define_op(
    schema: str, implementation: Callable[..., Any], fake: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Register one operator for every device and return its bound overload.

    ``implementation`` picks its backend itself, at run time, where ``torch.compile`` does not look. A mutating
    operator returns nothing, so its fake does nothing. On a device that no backend is for, and unless one is asked
    for by name, it gets copies on the CPU.
    """
    name = schema[: schema.index("(")]
    _LIB.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIB.impl(name, _on_any_device(schema, implementation), "CompositeExplicitAutograd")
    torch.library.register_fake(f"vqkernels::{name}", fake or (lambda *_: None), lib=_LIB)
    overload: Callable[..., Any] = getattr(torch.ops.vqkernels, name).default
    return overload


def _on_any_device(schema: str, implementation: Callable[..., Any]) -> Callable[..., Any]:
    parameters = torch._C.parse_schema(schema).arguments
    written = tuple(place for place, p in enumerate(parameters) if p.alias_info is not None and p.alias_info.is_write)
    takes_backend = parameters[-1].name == "backend"

    def run(*args: Any) -> Any:
        device = unserved_device(args)
        if device is None or (takes_backend and requested_backend(args[-1]) is not None):
            return implementation(*args)
        return through_the_cpu(implementation, args, device, written)

    return run


def saveable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy of one made in inference mode, which autograd refuses to save for a backward."""
    if torch.compiler.is_compiling() or not tensor.is_inference() or torch.is_inference_mode_enabled():
        return tensor
    return tensor.clone()


def register_autograd(name: str, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
    """Attach a backward formula to an operator defined with :func:`define_op`."""
    torch.library.register_autograd(f"vqkernels::{name}", backward, setup_context=setup_context, lib=_LIB)


class NotScriptable:
    """Part of modules that ``torch.jit.script`` cannot compile, and refuses in many lines."""

    def __prepare_scriptable__(self) -> None:
        kind = type(self).__name__
        hint = "torch.jit.trace takes it in evaluation mode"
        raise NotImplementedError(f"torch.jit.script: expected modules that it can compile, got {kind}; {hint}")


def is_exporting() -> bool:
    """Whether ``torch.export`` is at work: for batches of any size, and for values alone."""
    return bool(torch.compiler.is_exporting())


def is_traced() -> bool:
    """Whether ``torch.jit.trace`` is at work; what it saves cannot hold a function of Python."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]
