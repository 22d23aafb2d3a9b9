"""A sequence of modules around one quantizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import vqkernels.compat.vector_quantize_pytorch as quantizers

_OTHERS = ("BinaryMapper", "EvoLFQ", "Sequential")

# what takes and gives vectors; this loads every class of the package
QUANTIZE_KLASSES: tuple[type, ...] = tuple(
    getattr(quantizers, name) for name in quantizers.__all__ if name not in _OTHERS
)


class Sequential(nn.Module):
    """Apply modules in turn, exactly one of them a quantizer, and keep the rest of what that one returns.

    Equivalent to::

        x, *rest = quantizer(before(x), **kwargs)
        return after(x), *rest

    Args:
        *fns: the modules.

    Raises:
        ValueError: unless exactly one of them is a quantizer of this package.

    Example:
        >>> import torch
        >>> from vqkernels.compat.vector_quantize_pytorch import FSQ, Sequential
        >>> model = Sequential(torch.nn.Linear(16, 3), FSQ(levels=[5, 5, 5]), torch.nn.Linear(3, 16))
        >>> out, indices = model(torch.randn(2, 7, 16))
        >>> out.shape, indices.shape
        (torch.Size([2, 7, 16]), torch.Size([2, 7]))
    """

    def __init__(self, *fns: nn.Module) -> None:
        super().__init__()
        for fn in fns:
            if not isinstance(fn, nn.Module):
                raise TypeError(f"fns: expected modules, got {type(fn).__name__}")
        found = [number for number, fn in enumerate(fns) if isinstance(fn, QUANTIZE_KLASSES)]
        if len(found) != 1:
            raise ValueError(f"fns: expected exactly one quantizer, got {len(found)}")
        self.fns = nn.ModuleList(fns)
        self._position = found[0]

    def forward(self, x: torch.Tensor, **kwargs: Any) -> tuple[Any, ...]:
        """The last module's output and what else the quantizer returned; ``kwargs`` go to the quantizer."""
        rest: list[Any] = []
        for number, fn in enumerate(self.fns):
            if number == self._position:
                x, *rest = fn(x, **kwargs)
            else:
                x = fn(x)
        return x, *rest
