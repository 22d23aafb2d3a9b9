"""Arguments as nobody should pass them: of every kind, and like a right one but for one thing.

A value is made by a function of the argument it replaces, so that an example that fails is told by a name.
"""

from __future__ import annotations

import decimal
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from vqkernels.testing import strided

Change = Callable[[Any], Any]  # a right argument -> another

# 2**31 .. 2**60 are left out: tables of such sizes are legal, and would be made
INTEGERS = (0, 1, 2, 3, 5, 7, -1, -2, -7, -(2**31), 2**62, -(2**63), 2**63 - 1, 2**63, -(2**63) - 1, 2**70, 10**400)
FLOATS = (0.0, -0.0, 0.5, 1.0, 1.5, 2.0, -1.0, 1e-320, 1e300, -1e300, float("nan"), float("inf"), -float("inf"))
TEXTS = ("", "l2", "cosine", "ste", "random", "none", "cpu", "cuda", "x" * 1000, "a\nb: expected", "\0", b"bytes")


class _First(torch.nn.Module):
    """Serves wherever something is called: an error is not that of the caller's own function."""

    def forward(self, first: Any = None, *rest: Any, **named: Any) -> Any:
        return first


def _scalars() -> dict[str, Any]:
    named: dict[str, Any] = {f"text {number}": text for number, text in enumerate(TEXTS)}
    named |= {f"integer {number}": value for number, value in enumerate(INTEGERS)}
    named |= {f"float {value!r}": value for value in FLOATS}
    return named | {
        "None": None,
        "True": True,
        "False": False,
        "complex": 1j,
        "decimal": decimal.Decimal("0.5"),
        "numpy int": np.int64(2),
        "numpy float": np.float32(0.5),
        "numpy bool": np.bool_(True),
        "object": object(),
        "a dtype": torch.float16,
        "a device": torch.device("meta"),
    }


def _containers() -> dict[str, Callable[[], Any]]:
    return {
        "empty list": list,
        "empty tuple": tuple,
        "dict": lambda: {"a": 1},
        "range": lambda: range(3),
        "set": lambda: {1, 2},
        "list of numbers": lambda: [0.5, 0.5],
        "list of integers": lambda: [2, 3],
        "tuple of integers": lambda: (3, 2),
        "list of texts": lambda: ["a", "b"],
        "list of None": lambda: [None],
        "list of lists": lambda: [[1.0, 2.0], [3.0]],
        "list of tensors": lambda: [torch.zeros(2), torch.zeros(2)],
        "list of huge": lambda: [2**70, 2],
        "generator": lambda: (number for number in (1, 2)),
        "numpy array": lambda: np.zeros((3, 2), np.float32),
        "numpy of floats": lambda: np.array([0.5, 0.25]),
        "numpy 0-d": lambda: np.array(2),
        "numpy of objects": lambda: np.array([None, "a"], dtype=object),
        "numpy of texts": lambda: np.array(["a"]),
        "numpy of nothing": lambda: np.zeros((0, 2)),
        "module": _First,
    }


def _tensor(change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """A change of a tensor; of anything else, of a small tensor."""
    return lambda right: change(right.detach() if isinstance(right, torch.Tensor) else torch.ones(3, 2))


def _filled(value: float) -> Change:
    def fill(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.bool:
            return tensor
        whole = value if tensor.is_floating_point() else np.nan_to_num(value, posinf=9).clip(-(2.0**40), 2.0**40)
        return torch.full(tensor.shape, float(whole), dtype=torch.float64).to(tensor.dtype)

    return _tensor(fill)


def _first(value: float) -> Change:
    """One entry is not like the others."""

    def put(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        if tensor.numel() and tensor.is_floating_point():
            tensor[(0,) * tensor.dim()] = value
        return tensor

    return _tensor(put)


def _compressed(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(max(1, tensor.shape[0] if tensor.dim() else 1), -1).to_sparse_csr()


def _inference(tensor: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return tensor.clone()


def _quantized(tensor: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.quint8)


_DTYPES = {
    "bool": torch.bool,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "complex64": torch.complex64,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}


def _tensors() -> dict[str, Change]:
    changes: dict[str, Change] = {
        f"as {name}": _tensor(lambda t, d=dtype: t.to(d)) for name, dtype in _DTYPES.items()
    }
    changes |= {
        "sparse": _tensor(lambda t: t.to_sparse()),
        "sparse csr": _tensor(_compressed),
        "nested": _tensor(lambda t: torch.nested.nested_tensor([torch.ones(2, 2), torch.ones(3, 2)])),
        "nested jagged": _tensor(
            lambda t: torch.nested.nested_tensor([torch.ones(2, 2), torch.ones(3, 2)], layout=torch.jagged)
        ),
        "quantized": _tensor(_quantized),
        "mkldnn": _tensor(lambda t: t.float().reshape(-1, 1).to_mkldnn()),
        "meta": _tensor(lambda t: t.to("meta")),
        "expanded": _tensor(lambda t: t.flatten()[0].expand(t.shape) if t.numel() else t),
        "transposed": _tensor(lambda t: t.t() if t.dim() == 2 else t.movedim(0, -1) if t.dim() > 2 else t),
        "strided": _tensor(lambda t: strided(t) if t.dtype != torch.bool else t),
        "negated view": _tensor(lambda t: torch._neg_view(t) if t.dtype != torch.bool else t),
        "of inference mode": _tensor(_inference),
        "with gradient": _tensor(lambda t: t.clone().requires_grad_() if t.is_floating_point() else t),
        "0-dim": _tensor(lambda t: t.new_ones(())),
        "1-dim": _tensor(lambda t: t.reshape(-1)),
        "empty": _tensor(lambda t: t.new_zeros(0)),
        "no rows": _tensor(lambda t: t[:0] if t.dim() else t),
        "no columns": _tensor(lambda t: t[..., :0] if t.dim() else t),
        "a row more": _tensor(lambda t: torch.cat([t, t[:1]]) if t.dim() else t),
        "a column more": _tensor(lambda t: torch.cat([t, t[..., :1]], dim=-1) if t.dim() else t),
        "a dimension more": _tensor(lambda t: t[None]),
        "a dimension more at the end": _tensor(lambda t: t[..., None]),
        "of 20 dimensions": _tensor(lambda t: t.new_ones((1,) * 20)),
        "of NaN": _filled(float("nan")),
        "of infinity": _filled(float("inf")),
        "of huge numbers": _filled(1e300),
        "of large numbers": _filled(3e38),
        "of far numbers": _filled(1e20),
        "of -2": _filled(-2.0),
        "of 7": _filled(7.0),
        "of zeros": _filled(0.0),
        "a NaN": _first(float("nan")),
        "an infinity": _first(float("inf")),
        "one large": _first(3e38),
        "one far": _first(1e15),
    }
    return changes


def _constant(value: Any) -> Change:
    return lambda right: value


def _made(make: Callable[[], Any]) -> Change:
    return lambda right: make()


TENSORS: dict[str, Change] = _tensors()
OTHERS: dict[str, Change] = {name: _constant(value) for name, value in _scalars().items()}
OTHERS |= {name: _made(make) for name, make in _containers().items()}
CHANGES = {**TENSORS, **OTHERS}


_OTHERS, _TENSORS = sorted(OTHERS), sorted(TENSORS)


def changes(right: Any, pick: Callable[..., Any]) -> list[str]:
    """Names of changes of a right argument; of a tensor, most of them are to a tensor."""
    likely, other = (_TENSORS, _OTHERS) if isinstance(right, torch.Tensor) else (_OTHERS, _TENSORS)
    return pick(likely, likely, other)  # type: ignore[no-any-return]
