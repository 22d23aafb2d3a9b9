"""What may come of a call: a result, or one line that names an argument; and what it leaves as it was."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch

ALLOWED = (ValueError, TypeError, IndexError, NotImplementedError)
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LONGEST = 300
_EXPECTED = re.compile(r"^(?P<names>[^:]*): expected .*, got ", re.DOTALL)
# a backend asked for by name
_BACKEND = re.compile(r"^\w+: (backend '\w+' (cannot run|does not exist)|no backend can run)")
# of an argument that a signature does not have
_FEATURES = re.compile(
    r"^X has \d+ features, but KMeans is expecting \d+ features as input$"
)  # as scikit-learn wants it
_SIGNATURE = re.compile(r"(got an unexpected keyword argument|missing \d+ required|got multiple values)")


def outcome(call: Callable[[], Any], names: Iterable[str]) -> Any:
    """The result of a call, or the error, which has to be an allowed one and to name one of the arguments."""
    try:
        return call()
    except ALLOWED as error:
        complaint = complaint_about(error, names)
        if complaint:
            raise AssertionError(f"{complaint}: {type(error).__name__}: {str(error)[:500]!r}") from error
        return error


def complaint_about(error: Exception, names: Iterable[str]) -> str:
    """What is wrong with an error; nothing is said of a good one."""
    message = str(error)
    if "\n" in message:
        return "more than one line"
    if len(message) >= LONGEST:
        return f"{len(message)} characters"
    if _BACKEND.match(message) or _FEATURES.match(message) or _SIGNATURE.search(message):
        return ""
    said = _EXPECTED.match(message)
    if said is None:
        return "not told as 'name: expected ..., got ...'"
    # devices are told of all tensors
    where = message if said["names"] == "device" else said["names"]
    known = set(names)
    return "" if known & set(re.findall(r"\w+", where)) else f"names none of {', '.join(sorted(known))}"


Bits = tuple[str, bytes | None] | None  # what it is, and its bits


def snapshot(tensors: dict[str, Any]) -> dict[str, Bits]:
    """The bits of tensors by name, in whatever else there is too."""
    return {
        name: _bits(tensor) for name, tensor in tensors.items() if tensor is None or isinstance(tensor, torch.Tensor)
    }


def _bits(tensor: torch.Tensor | None) -> Bits:
    if tensor is None:
        return None
    if not _dense(tensor):
        return str(tensor.dtype), None
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.detach().reshape(-1))
    return f"{tensor.dtype} {tensor.shape} {tensor.device}", flat.view(torch.uint8).numpy().tobytes()


def _dense(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_meta or tensor.is_quantized)


def state_of(module: torch.nn.Module) -> dict[str, Any]:
    """All parameters and buffers, those that are not saved too, and the mode of every part."""
    state: dict[str, Any] = {}
    for path, part in module.named_modules():
        state |= {f"{path}.{name}": tensor for name, tensor in (*part._parameters.items(), *part._buffers.items())}
        state[f"{path}.training"] = torch.tensor(part.training)
    return state


def all_finite(tensors: dict[str, Any]) -> bool:
    return not nonfinite(tensors)


def nonfinite(tensors: dict[str, Any]) -> list[str]:
    """Names of tensors with an entry that is not finite."""
    floats = {
        name: t for name, t in tensors.items() if isinstance(t, torch.Tensor) and t.dtype in FLOATS and _dense(t)
    }
    return [name for name, tensor in floats.items() if not bool(tensor.isfinite().all())]
