"""Devices that no backend is for (Apple MPS, Intel XPU): their tensors go through the kernels of the CPU and back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

_SERVED = ("cpu", "cuda", "meta")
_told: set[str] = set()  # types of devices


def widest(device: torch.device) -> torch.dtype:
    """The widest floating point that a device computes in."""
    if device.type in _SERVED or (device.type == "xpu" and torch.xpu.get_device_properties(device).has_fp64):
        return torch.float64
    return torch.float32


def unserved_device(args: Iterable[Any]) -> torch.device | None:
    """The device of the first tensor among arguments, or in lists among them, if no backend is for it."""
    first = first_tensor(args)
    return None if first is None or first.device.type in _SERVED else first.device


def first_device(args: Iterable[Any]) -> str:
    """The type of the device of the first tensor among arguments, or in lists among them; empty without one."""
    first = first_tensor(args)
    return "" if first is None else first.device.type


def first_tensor(args: Iterable[Any]) -> torch.Tensor | None:
    for arg in args:
        first = arg[0] if isinstance(arg, (list, tuple)) and arg else arg
        if isinstance(first, torch.Tensor):
            return first
    return None


def on_the_cpu(args: Any) -> Any:
    """The same arguments, with copies of the tensors among them; differentiable."""
    return tree_map_only(torch.Tensor, lambda tensor: tensor.cpu(), args)


def through_the_cpu(
    function: Callable[..., Any], args: tuple[Any, ...], device: torch.device, written: tuple[int, ...] = ()
) -> Any:
    """``function`` of copies on the CPU, its results on the device; those of the arguments that it writes, too.

    The device is named in a warning, once. Results are no wider than it can hold.
    """
    if device.type not in _told:
        _told.add(device.type)
        warnings.warn(f"vqkernels: no kernels for {device.type}, its tensors go through the CPU", stacklevel=3)
    copies = on_the_cpu(args)
    results = function(*copies)
    for place in written:
        args[place].copy_(copies[place])

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(widest(device) if tensor.dtype == torch.float64 else tensor.dtype).to(device)

    return tree_map_only(torch.Tensor, moved, results)
