"""Whether Triton kernels can run, and where: asked by every ``triton.py`` of an op.

Nothing here imports Triton before a tensor that it could serve is at hand. A launcher imports its kernels inside
``run``, so ``import vqkernels`` stays light and works without Triton.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

import torch

from vqkernels._core.checks import tensors_among
from vqkernels._core.env import triton_interpreted

OLDEST_CAPABILITY = (8, 0)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@functools.cache
def load_error() -> str:
    """Why Triton cannot be imported; empty if it can."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return str(error)
    if triton_interpreted():
        from vqkernels._core.triton_interpreter import mend_interpreter

        mend_interpreter()
    return ""


def triton_unsupported_reasons(*args: object) -> list[str]:
    """Why Triton kernels cannot run on the tensors among these arguments; without tensors, on this machine."""
    reasons: list[str] = []
    tensors = tensors_among(args)
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype not in DTYPES:
            reasons.append(f"dtype {tensor.dtype} not supported")
        reasons += _device_reasons(tensor.device)
    if not tensors and not triton_interpreted():
        reasons += _machine_reasons()
    if not reasons and load_error():
        reasons.append(f"Triton not available ({load_error()})")
    return list(dict.fromkeys(reasons))


def _machine_reasons() -> list[str]:
    return _device_reasons(torch.device("cuda")) if torch.cuda.is_available() else ["no CUDA device"]


def _device_reasons(device: torch.device) -> list[str]:
    if triton_interpreted():
        return [] if device.type in ("cpu", "cuda") else [f"tensor on {device}, the interpreter needs cpu or cuda"]
    if device.type != "cuda":
        return [f"tensor on {device}, this backend needs cuda"]
    if torch.version.cuda is None:
        return ["this torch is not built for CUDA devices"]
    if (capability := torch.cuda.get_device_capability(device)) < OLDEST_CAPABILITY:
        return [f"compute capability {capability[0]}.{capability[1]}, this backend needs 8.0"]
    return []


def triton_by_name_only_reasons(*args: object) -> list[str]:
    """An interpreted kernel is for tests: never chosen unless asked for."""
    return ["interpreted, for tests"] if triton_interpreted() else []


def launch_device(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's device the current one: Triton launches there, whatever device its arguments are on."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def launch_target(tensor: torch.Tensor) -> str:
    """What a table of launch configurations is keyed by: ``"sm_90"``, ..., or ``"interpreter"``."""
    if triton_interpreted():
        return "interpreter"
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return f"sm_{major}{minor}"


def block_of(size: int, most: int) -> int:
    """The power of two that covers ``size``, at most ``most``: how much of a dimension is loaded at a time."""
    return min(most, 1 << (size - 1).bit_length())
