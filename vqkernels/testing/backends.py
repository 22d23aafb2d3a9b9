"""Which backends a test or a benchmark can run here, and on which device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vqkernels import explain, use_backend


def usable_backends(*ops: str) -> list[str]:
    """Return the backends that serve every one of some ops on this machine.

    Args:
        *ops: names of registered ops, at least one.

    Returns:
        Backend names in order of preference. Arguments of a call may still rule one out, and a backend that runs
        by name only (an interpreted one) is among them.

    Raises:
        ValueError: if an op is not registered.

    Example:
        >>> from vqkernels.testing import usable_backends
        >>> usable_backends("nearest_code", "gather_codes")[-1]
        'reference'
    """
    first, *others = [[choice.backend for choice in explain(op) if not choice.reasons] for op in ops]
    return [name for name in first if all(name in other for other in others)]


def interpreted(backend: str) -> bool:
    """Return whether a backend's kernels run in an interpreter, many times slower than they are.

    Args:
        backend: name of a backend.

    Returns:
        True for ``"triton"`` where there is no GPU.

    Raises:
        ValueError: if the backend does not exist.

    Example:
        >>> from vqkernels.testing import interpreted
        >>> interpreted("reference")
        False
    """
    return backend == "triton" and backend_device(backend).type == "cpu"


def backend_device(backend: str) -> torch.device:
    """Return the device a backend needs its tensors on: CUDA for ``"cuda"`` and, unless interpreted, ``"triton"``.

    Args:
        backend: name of a backend.

    Returns:
        ``torch.device("cuda")`` or ``torch.device("cpu")``.

    Raises:
        ValueError: if the backend does not exist.

    Example:
        >>> from vqkernels.testing import backend_device
        >>> backend_device("reference"), backend_device("cuda")
        (device(type='cpu'), device(type='cuda'))
    """
    with use_backend(backend):  # refuses unknown names
        on_gpu = backend == "cuda" or (backend == "triton" and torch.cuda.is_available())
    return torch.device("cuda" if on_gpu else "cpu")


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on a device with its strides, gaps and offset as they are, which ``Tensor.to`` may change.

    Args:
        tensor: any dtype, shape and strides.
        device: where to.

    Returns:
        The tensor itself if it is there already, else a view of a copy of its whole storage.

    Raises:
        RuntimeError: if this machine has no such device.

    Example:
        >>> import torch
        >>> from vqkernels.testing import to_device
        >>> to_device(torch.zeros(4, 6)[:, ::2], torch.device("meta")).stride()
        (6, 2)
    """
    if tensor.device.type == device.type:
        return tensor
    whole = tensor.detach().as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)
    moved = whole.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return moved.requires_grad_(tensor.requires_grad)


def call_on(backend: str, op: Callable[..., Any], *tensors: torch.Tensor) -> Any:
    """Call an op on one backend: tensors go to the device it needs, results come back to the CPU.

    Args:
        backend: passed to the op as ``backend=``.
        op: a public op that returns a tensor or a NamedTuple of tensors; ``functools.partial`` binds its options.
        *tensors: its positional arguments; they keep their strides.

    Returns:
        What the op returns.

    Raises:
        ValueError: if the backend does not exist; also what the op raises.

    Example:
        >>> import torch, vqkernels
        >>> from vqkernels.testing import call_on
        >>> call_on("reference", vqkernels.nearest_code, torch.ones(1, 2), torch.eye(2)).indices
        tensor([0])
    """
    device = backend_device(backend)
    result = op(*(to_device(tensor, device) for tensor in tensors), backend=backend)
    return result.cpu() if isinstance(result, torch.Tensor) else type(result)(*(part.cpu() for part in result))
