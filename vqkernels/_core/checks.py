"""Argument checks with one-line messages: the argument, what was expected, what came."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch

from vqkernels._core.backend import check_backend

METRICS = ("l2", "cosine", "dot")


def check_metric(metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")


def tensors_among(args: Iterable[object]) -> list[torch.Tensor]:
    """The tensors among the arguments of an operator, and in lists among them."""
    flat = chain.from_iterable(arg if isinstance(arg, (list, tuple)) else [arg] for arg in args)
    return [arg for arg in flat if isinstance(arg, torch.Tensor)]


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")


def check_floating(name: str, value: object) -> None:
    check_tensor(name, value)
    assert isinstance(value, torch.Tensor)
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating point tensor, got {value.dtype}")


def check_indices(name: str, value: object) -> None:
    check_tensor(name, value)
    assert isinstance(value, torch.Tensor)
    if value.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: expected int64 or int32 indices, got {value.dtype}")


def check_index_values(name: str, indices: torch.Tensor, num_codes: int) -> None:
    """Raise for an index outside ``[-1, num_codes)``; on the CPU only, elsewhere it would be a synchronisation."""
    if indices.device.type != "cpu" or not indices.numel():
        return
    low, high = int(indices.min()), int(indices.max())
    if low < -1 or high >= num_codes:
        raise IndexError(f"{name}: expected values in [-1, {num_codes}), got {low if low < -1 else high}")


def check_same_device(**tensors: torch.Tensor | None) -> None:
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    devices = {tensor.device for tensor in present.values()}
    if len(devices) > 1:
        raise ValueError(
            "device: expected one device, got " + ", ".join(f"{n} on {t.device}" for n, t in present.items())
        )


def check_shape(name: str, tensor: torch.Tensor, expected: tuple[int, ...], legend: str) -> None:
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{name}: expected shape {legend} = {list(expected)}, got {list(tensor.shape)}")


def check_codebook(codebook: torch.Tensor) -> None:
    """``[K, D]`` or ``[G, K, D]`` with at least one code, one dimension and one group."""
    if codebook.dim() not in (2, 3):
        raise ValueError(f"codebook: expected [K, D] or [G, K, D], got shape {list(codebook.shape)}")
    if min(codebook.shape) < 1:
        raise ValueError(f"codebook: expected at least one code and one dimension, got shape {list(codebook.shape)}")


def check_vectors(x: torch.Tensor, codebook: torch.Tensor) -> None:
    """``x [..., D]`` for a flat codebook, ``[..., G, D]`` for a grouped one."""
    tail = tuple(codebook.shape[-1:]) if codebook.dim() == 2 else (codebook.shape[0], codebook.shape[2])
    if x.dim() < len(tail) or tuple(x.shape[-len(tail) :]) != tail:
        legend = "[..., D]" if codebook.dim() == 2 else "[..., G, D]"
        raise ValueError(
            f"x: expected {legend} ending in {list(tail)} for codebook {list(codebook.shape)}, got {list(x.shape)}"
        )


def check_integer(name: str, value: object, low: int, high: int, legend: str) -> None:
    """An integer from ``low`` to ``high``; ``legend`` says what the upper limit is."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low} <= {name} <= {legend} = {high}, got {value}")


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
    check_backend(backend)
    check_same_device(x=x, indices=indices, weight=weight)
    if x.dim() < (1 if groups is None else 2) or (groups is not None and x.shape[-2] != groups):
        legend = "[..., D]" if groups is None else f"[..., G={groups}, D]"
        raise ValueError(f"x: expected {legend}, got shape {list(x.shape)}")
    check_shape("indices", indices, tuple(x.shape[:-1]), "x.shape[:-1]")
    g = 1 if groups is None else groups
    if weight is not None:
        check_floating("weight", weight)
        check_shape("weight", weight, tuple(indices.shape), "indices.shape")
        weight = weight.detach().reshape(-1, g)
    return x.detach().reshape(-1, g, x.shape[-1]), indices.reshape(-1, g).long(), weight
