"""A device that no backend is for, in Python: its tensors hold tensors of the CPU. Like MPS it has no float64.

``install()`` makes ``tensor.to("standin")`` work from then on, and changes nothing for other devices.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"
# by their own definition they are steps in memory, which these tensors have none of
_VIEWS = (
    *("expand", "permute", "unsqueeze", "squeeze", "squeeze.dim", "squeeze.dims", "select.int", "slice.Tensor"),
    *("transpose.int", "t", "unbind.int", "split.Tensor", "split_with_sizes", "diagonal", "view.dtype"),
)
_held: dict[int, torch.Tensor] = {}  # by storage, which a tensor shares with what autograd saves of it


class _Hook(torch._C._acc.PrivateUse1Hooks):
    """There is one, but nobody takes it for the accelerator of this machine."""

    def is_available(self) -> bool:
        return False

    def has_primary_context(self, device: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


class _Module:
    """What torch asks of ``torch.standin``."""

    def is_available(self) -> bool:
        return False

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


@functools.cache
def install() -> list[torch.library.Library]:
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module(), hook=_Hook())
    every, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    every.fallback(_run, "PrivateUse1")
    aten.impl("_copy_from", _copy_from, "PrivateUse1")
    for name in _VIEWS:
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet), overload or "default")
        aten.impl(name, functools.partial(_run, op), "PrivateUse1")
    return [every, aten]


def _inside(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.device.type == NAME:
        return _held[value.untyped_storage()._cdata]
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value


def _outside(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype == torch.float64:
        raise TypeError("the stand-in has no float64")
    outside = torch._C._acc.create_empty_tensor(tuple(tensor.shape), tensor.dtype)
    _held[outside.untyped_storage()._cdata] = tensor
    return outside


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    # a number that stands for a tensor arrives as a number
    args = tuple(
        torch.tensor(value) if str(parameter.type) == "Tensor" and isinstance(value, int | float) else value
        for parameter, value in zip(op._schema.arguments, args, strict=False)
    )
    assert op is not torch.ops.aten.as_strided.default or _inside(args[0]).is_contiguous()
    given, structure = tree_flatten((args, kwargs))
    inside = [_inside(value) for value in given]
    args, kwargs = tree_unflatten(inside, structure)
    kwargs.pop("pin_memory", None)
    known = {id(there): here for there, here in zip(inside, given, strict=True)}

    def back(result: Any) -> Any:
        if not isinstance(result, torch.Tensor):
            return result
        tensor = known.get(id(result))
        if tensor is None:
            return _outside(result)
        if tensor.shape != result.shape:
            # an output that was resized
            tensor.data = _outside(result)
        return tensor

    return tree_map(back, op(*args, **kwargs))


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    _inside(target).copy_(_inside(source))
    return target
