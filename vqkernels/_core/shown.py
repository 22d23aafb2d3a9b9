"""What a message says came: a few words on one line, whatever it was."""

from __future__ import annotations

import reprlib

import numpy as np
import torch

_PLAIN = (bool, int, float, complex, torch.dtype)
_LONGEST = 80
_LARGEST_SHOWN = 128  # bits


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        # more digits than anybody counts, and than Python is willing to print
        return f"an integer of {x.bit_length()} bits" if x.bit_length() > _LARGEST_SHOWN else repr(x)

    def repr_Tensor(self, x: torch.Tensor, level: int) -> str:
        return f"a tensor of {x.dtype}"

    repr_Parameter = repr_Tensor

    def repr_instance(self, x: object, level: int) -> str:
        if isinstance(x, np.generic):
            x = x.item()
        return repr(x) if isinstance(x, _PLAIN) or x is None else type(x).__name__


_short = _Short()
_short.maxlist = _short.maxtuple = 8
_short.maxstring = _LONGEST


def shown(value: object) -> str:
    """The value if it is a number, a string or a list of such, else what it is; at most one line."""
    text = " ".join(_short.repr(value).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def kind_of(value: object) -> str:
    """What a value of another kind than expected is."""
    if isinstance(value, torch.Tensor) and not is_dense(value):
        kind = "nested" if value.is_nested else "quantized" if value.is_quantized else str(value.layout)
        return f"one that is {kind}"
    return shown(value) if isinstance(value, (list, tuple)) else type(value).__name__


def is_dense(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized


def shape_of(tensor: torch.Tensor) -> str:
    return shown(list(tensor.shape))
