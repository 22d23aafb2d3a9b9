"""Argument checks with one-line messages: the argument, what was expected, what came.

Nothing here looks at the values of a tensor, unless it says so; all of it can be traced.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch

from vqkernels._core.backend import check_backend
from vqkernels._core.shown import is_dense, kind_of, shape_of, shown

METRICS = ("l2", "cosine", "dot")
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # normal numbers of float32
# more numbers than any address space holds in float32
MOST_NUMBERS = 1 << 45

_INTEGERS = (int, np.integer, torch.SymInt)
_NUMBERS = (*_INTEGERS, float, np.floating, torch.SymFloat)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    # not `in` alone, which asks an array or a tensor whether it equals a string
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {shown(value)}")


def check_metric(metric: object) -> None:
    check_choice("metric", metric, METRICS)


def is_integer(value: object) -> bool:
    """Whether it is an integer of Python, NumPy or a traced shape; True and False are none."""
    return isinstance(value, _INTEGERS) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    return isinstance(value, _NUMBERS) and not isinstance(value, bool)


def is_flag(value: object) -> bool:
    # configurations write 0 and 1
    return isinstance(value, (bool, np.bool_)) or (is_integer(value) and value in (0, 1))


def check_flag(name: str, value: object) -> bool:
    if not is_flag(value):
        raise TypeError(f"{name}: expected True or False, got {type(value).__name__}")
    return bool(value)


def check_integer(name: str, value: Any, low: int, high: int | None = None, legend: str = "") -> None:
    """An integer of at least ``low``; ``legend`` says what the upper limit, if there is one, is."""
    if not is_integer(value):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if high is not None:
        if not low <= value <= high:
            raise ValueError(f"{name}: expected {low} <= {name} <= {legend} = {high}, got {shown(value)}")
    elif value < low:
        raise ValueError(f"{name}: expected at least {low}, got {shown(value)}")
    # a traced size has no such limit, and to ask would be one more condition of the graph
    elif not torch.compiler.is_compiling() and value > torch.iinfo(torch.int64).max:
        raise ValueError(f"{name}: expected a number of 64 bits, got {shown(value)}")


def check_number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, without: tuple[float, ...] = ()
) -> float:
    """A finite number from ``low`` to ``high``, ends included but for those it has to be ``without``; as a float."""
    if not is_number(value):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not is_within(value, low, high, without):
        raise ValueError(f"{name}: expected {interval(low, high, without)}, got {shown(value)}")
    number: float = as_float(value)
    return number


def as_float(value: Any) -> Any:
    # torch takes no integer of more than 64 bits
    return float(value) if isinstance(value, (int, np.generic)) else value


def is_within(value: Any, low: float, high: float, without: tuple[float, ...] = ()) -> bool:
    # ordered so that NaN, infinity, and an integer too large for a float, fail; the largest float is written down:
    # one read from a module is an input of a compiled graph, which is then compiled twice
    return low <= value <= high and abs(value) <= (2 - 2.0**-52) * 2.0**1023 and value not in without


def interval(low: float, high: float, without: tuple[float, ...] = ()) -> str:
    """How a message calls the numbers from ``low`` to ``high``."""
    if high == math.inf:
        return "a finite number" if low == -math.inf else f"a finite number {'>' if low in without else '>='} {low:g}"
    return f"a number in {'(' if low in without else '['}{low:g}, {high:g}{')' if high in without else ']'}"


def check_seed(name: str, value: object, like: torch.Tensor | None = None) -> None:
    """An integer of 64 bits, or a tensor ``[]`` of one on the device of ``like``, if there is that."""
    if isinstance(value, torch.Tensor) and like is not None:
        check_tensor(name, value)
        if value.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name}: expected an integer, got a tensor of {value.dtype}")
        check_shape(name, value, (), "[]")
        if value.device != like.device:
            raise ValueError(f"{name}: expected a tensor on {like.device}, got one on {value.device}")
    else:
        check_integer(name, value, -(1 << 63))


def check_size(name: str, **sizes: int) -> None:
    """Raise for a table of these sizes that no machine could hold."""
    if not torch.compiler.is_compiling() and math.prod(sizes.values()) > MOST_NUMBERS:
        got = " x ".join(f"{key}={shown(size)}" for key, size in sizes.items())
        raise ValueError(f"{name}: expected at most 2^45 numbers in a table, got {got}")


def each_of(name: str, values: Any) -> Iterator[Any]:
    # an array is an Iterable even without dimensions, and a tensor of anything but one of what is wanted
    if isinstance(values, (np.ndarray, torch.Tensor)) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: expected an iterable, got {type(values).__name__}")
    return iter(values)


def tensors_among(args: Iterable[object]) -> list[torch.Tensor]:
    """The tensors among the arguments of an operator, and in lists among them."""
    flat = chain.from_iterable(arg if isinstance(arg, (list, tuple)) else [arg] for arg in args)
    return [arg for arg in flat if isinstance(arg, torch.Tensor)]


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if not is_dense(value):
        raise TypeError(f"{name}: expected a dense tensor, got {kind_of(value)}")


def check_floating(name: str, value: object, parameters: Iterable[torch.Tensor] = ()) -> None:
    """A tensor of numbers to compute with; ``parameters`` are those of the module that does."""
    check_state(*parameters)
    check_tensor(name, value)
    assert isinstance(value, torch.Tensor)
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating point tensor, got {value.dtype}")
    # others, of 8 bits and fewer, are for storage: torch itself cannot compare them
    if value.dtype not in FLOATS:
        raise TypeError(f"{name}: expected float32, float64, float16 or bfloat16, got {value.dtype}")


def check_numbers(name: str, value: object) -> None:
    """A tensor of numbers, whole ones too."""
    check_tensor(name, value)
    assert isinstance(value, torch.Tensor)
    if value.dtype not in (*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(f"{name}: expected integers, float32, float64, float16 or bfloat16, got {value.dtype}")


def check_state(*tensors: torch.Tensor) -> None:
    """Raise if a module was cast to a dtype that is for storage."""
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype not in FLOATS:
            raise TypeError(f"module: expected float32, float64, float16 or bfloat16 parameters, got {tensor.dtype}")


def check_floating_dtype(name: str, value: object) -> None:
    if not isinstance(value, torch.dtype):
        raise TypeError(f"{name}: expected a torch.dtype, got {type(value).__name__}")
    if value not in FLOATS:
        raise ValueError(f"{name}: expected float32, float64, float16 or bfloat16, got {value}")


def check_indices(name: str, value: object) -> None:
    check_tensor(name, value)
    assert isinstance(value, torch.Tensor)
    if value.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: expected int64 or int32 indices, got {value.dtype}")


def check_mask(name: str, value: object, expected: tuple[int, ...], legend: str) -> None:
    check_tensor(name, value)
    assert isinstance(value, torch.Tensor)
    if value.dtype != torch.bool:
        raise TypeError(f"{name}: expected bool, got {value.dtype}")
    check_shape(name, value, expected, legend)


def check_weight(name: str, value: object) -> None:
    check_tensor(name, value)
    assert isinstance(value, torch.Tensor)
    if value.dtype != torch.bool and value.dtype not in FLOATS:
        raise TypeError(f"{name}: expected floating point or bool, got {value.dtype}")


def check_data(name: str, tensor: torch.Tensor) -> None:
    """Raise for a tensor without values, where a value decides what happens next."""
    if tensor.is_meta:
        raise ValueError(f"{name}: expected a tensor with data, got one on {tensor.device}")


def check_writable(name: str, tensor: torch.Tensor) -> None:
    """Raise for a tensor that cannot be written in place: entries in one place, of inference mode, negated."""
    if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        raise ValueError(f"{name}: expected a tensor that can be written, got an expanded one")
    if torch.compiler.is_compiling():
        return
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(f"{name}: expected a tensor that can be written, got one of inference mode")
    if tensor.is_neg():
        raise ValueError(f"{name}: expected a tensor that can be written, got a negated view")


def check_index_values(name: str, indices: torch.Tensor, num_codes: int) -> None:
    """Raise for an index outside ``[-1, num_codes)``; on the CPU only, elsewhere it would be a synchronisation."""
    if torch.compiler.is_compiling() or indices.device.type != "cpu" or not indices.numel():
        return
    low, high = int(indices.min()), int(indices.max())
    if low < -1 or high >= num_codes:
        raise IndexError(f"{name}: expected values in [-1, {num_codes}), got {low if low < -1 else high}")


def check_same_device(**tensors: torch.Tensor | None) -> None:
    present = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(present.values())) > 1:
        raise ValueError(
            "device: expected one device, got " + ", ".join(f"{n} on {device}" for n, device in present.items())
        )


def check_shape(name: str, tensor: torch.Tensor, expected: tuple[int, ...], legend: str) -> None:
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{name}: expected shape {legend} = {shown(list(expected))}, got {shape_of(tensor)}")


def check_returned(name: str, value: object, like: torch.Tensor, legend: str) -> None:
    """What a function of the caller has returned: numbers of the shape of ``like``, beside it."""
    check_floating(name, value)
    assert isinstance(value, torch.Tensor)
    check_shape(name, value, tuple(like.shape), legend)
    if value.device != like.device:
        raise ValueError(f"{name}: expected a tensor on {like.device}, got one on {value.device}")


def check_codebook(codebook: torch.Tensor) -> None:
    """``[K, D]`` or ``[G, K, D]`` with at least one code, one dimension and one group."""
    if codebook.dim() not in (2, 3):
        raise ValueError(f"codebook: expected [K, D] or [G, K, D], got shape {shape_of(codebook)}")
    if min(codebook.shape) < 1:
        raise ValueError(f"codebook: expected at least one code and one dimension, got shape {shape_of(codebook)}")


def check_vectors(x: torch.Tensor, codebook: torch.Tensor) -> None:
    """``x [..., D]`` for a flat codebook, ``[..., G, D]`` for a grouped one."""
    tail = tuple(codebook.shape[-1:]) if codebook.dim() == 2 else (codebook.shape[0], codebook.shape[2])
    if x.dim() < len(tail) or tuple(x.shape[-len(tail) :]) != tail:
        legend = "[..., D]" if codebook.dim() == 2 else "[..., G, D]"
        raise ValueError(
            f"x: expected {legend} ending in {list(tail)} for codebook {shape_of(codebook)}, got {shape_of(x)}"
        )


def check_assigned(
    x: torch.Tensor,  # [..., D] or [..., G, D]
    indices: torch.Tensor,  # [...] or [..., G]
    groups: int | None,
    weight: torch.Tensor | None,  # like indices
    backend: str | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Vectors and the codes they are assigned to, detached, as ``[N, G, D]``, ``[N, G]`` int64 and ``[N, G]``."""
    check_floating("x", x)
    check_indices("indices", indices)
    if weight is not None:
        check_floating("weight", weight)
    if groups is not None:
        check_integer("groups", groups, 1)
    check_backend(backend)
    check_same_device(x=x, indices=indices, weight=weight)
    if x.dim() < (1 if groups is None else 2) or (groups is not None and x.shape[-2] != groups):
        legend = "[..., D]" if groups is None else f"[..., G={groups}, D]"
        raise ValueError(f"x: expected {legend}, got shape {shape_of(x)}")
    if x.shape[-1] < 1:
        raise ValueError(f"x: expected at least one dimension, got shape {shape_of(x)}")
    check_shape("indices", indices, tuple(x.shape[:-1]), "x.shape[:-1]")
    g = 1 if groups is None else groups
    if weight is not None:
        check_shape("weight", weight, tuple(indices.shape), "indices.shape")
        weight = weight.detach().reshape(-1, g)
    return x.detach().reshape(-1, g, x.shape[-1]), indices.reshape(-1, g).long(), weight
