"""The compiled extension: loaded once; if it cannot be, the reason is kept and told."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from vqkernels._core.checks import tensors_among

try:
    from vqkernels import _C as _loaded

    _module: ModuleType | None = _loaded
    _with_cuda = bool(_loaded.build_info()["cuda"])
    load_error = ""
except ImportError as error:  # a pure Python install; the text is shown by info, explain and every raise
    _module = None
    _with_cuda = False
    load_error = str(error)


def _join_torch(module: ModuleType) -> None:
    """Let the kernels run on the OpenMP threads of torch, if it has them: two pools would contend for the cores."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not library.exists():
        return
    # as symbols of the library are found: one preloaded comes before the one that it is linked to
    for place in (None, str(library)):
        run = getattr(ctypes.CDLL(place), "GOMP_parallel", None)
        if run is not None:
            module.use_team(ctypes.cast(run, ctypes.c_void_p).value)
            return


if _module is not None:
    _join_torch(_module)

# codes shared with csrc/types.h
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
METRIC_CODES = {"l2": 0, "cosine": 1, "dot": 2}


def extension() -> Any:
    """The extension module.

    Raises:
        RuntimeError: if it is not there, with the import error.
    """
    if _module is None:
        raise RuntimeError(f"the compiled extension is not available: {load_error}")
    return _module


def build_info() -> dict[str, Any]:
    """What was compiled and which instruction set runs; empty without the extension."""
    return {} if _module is None else dict(_module.build_info())


def cpu_unsupported_reasons(*args: object) -> list[str]:
    """Why the C++ CPU kernels cannot run on the tensors among these arguments, or in lists among them."""
    return _unsupported_reasons("cpu", args)


def cuda_unsupported_reasons(*args: object) -> list[str]:
    """Why the compiled CUDA kernels cannot run on the tensors among these arguments; initialises no CUDA."""
    reasons = []
    if _module is not None and not _with_cuda:
        reasons.append("extension built without CUDA kernels (VQKERNELS_BUILD=cuda builds them)")
    if not torch.cuda.is_available():
        reasons.append("no CUDA device")
    return reasons + _unsupported_reasons("cuda", args)


def _unsupported_reasons(device: str, args: tuple[object, ...]) -> list[str]:
    reasons = [] if _module is not None else [f"compiled extension not available ({load_error})"]
    for tensor in tensors_among(args):
        if tensor.device.type != device:
            reasons.append(f"tensor on {tensor.device}, this backend needs {device}")
        if tensor.dtype not in DTYPE_CODES and tensor.is_floating_point():
            reasons.append(f"dtype {tensor.dtype} not supported")
    return list(dict.fromkeys(reasons))
