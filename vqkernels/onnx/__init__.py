"""Quantizers as ONNX files: what ``torch.onnx.export`` has to be told about the operators of this package."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["onnx_translations"]


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What the operators of a quantizer in evaluation mode are in ONNX: standard operators alone.

    For ``torch.onnx.export(..., dynamo=True, custom_translation_table=vqkernels.onnx_translations())``. The file then
    runs where ``vqkernels`` is not installed. About 2^22 pairs of a vector and a code are held at a time, in a
    ``Loop`` where there may be more; all of them for up to 1,024 codes.

    Returns:
        A translation for each of ``nearest_code``, ``top_codes``, ``multilevel_nearest_code``, ``gather_codes`` and
        ``soft_assignment_entropy``.

    Numerics:
        Distances are compared in float32 (float64 for float64 vectors or codes): codes that are nearly equally near
        may change places. Vectors and codes that are not finite are treated as by :func:`vqkernels.nearest_code`. An
        index outside ``[-1, K)`` is not refused.

    Raises:
        ImportError: without ``onnxscript``.

    Example:
        >>> import vqkernels
        >>> [op.name() for op in vqkernels.onnx_translations()][0]
        'vqkernels::nearest_code'
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise ImportError(
            "onnxscript: expected it to be installed (pip install onnx onnxscript), got no such package"
        )
    from vqkernels.onnx.translations import TRANSLATIONS

    return {getattr(torch.ops.vqkernels, name).default: function for name, function in TRANSLATIONS.items()}
