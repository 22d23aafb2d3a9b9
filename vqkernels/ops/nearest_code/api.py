"""The public lookup function: checks, canonical layout, one operator call."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vqkernels._core.backend import check_backend
from vqkernels._core.checks import (
    check_codebook,
    check_floating,
    check_metric,
    check_same_device,
    check_vectors,
)
from vqkernels._core.wide import compared, told
from vqkernels.ops.nearest_code.op import nearest_code_op


class NearestCode(NamedTuple):
    """Result of :func:`nearest_code`."""

    indices: torch.Tensor  # [...] int64
    distance: torch.Tensor  # [...] float32


def nearest_code(
    x: torch.Tensor,  # [..., D] or [..., G, D]
    codebook: torch.Tensor,  # [K, D] or [G, K, D]
    *,
    metric: str = "l2",
    backend: str | None = None,
) -> NearestCode:
    """Find the nearest code of every vector, exactly, without an N x K matrix.

    Equivalent to ``torch.cdist(x.double(), codebook.double()).argmin(-1)`` (for ``metric="l2"``), in O(N + K)
    memory. The first nearest code (lowest index) wins a tie.

    Args:
        x: vectors ``[..., D]``, or ``[..., G, D]`` with a grouped codebook. float32, float64, float16 or
            bfloat16; halves are read directly.
        codebook: codes ``[K, D]``, or ``[G, K, D]``: group g of every vector is looked up in ``codebook[g]``.
        metric: ``"l2"`` (squared distance), ``"cosine"`` (1 - cos; a zero vector has cos 0 to everything) or
            ``"dot"`` (-x.c). Smaller is nearer.
        backend: a backend by name, or None for the best one (see :func:`vqkernels.explain`).

    Returns:
        ``NearestCode(indices, distance)``, both shaped like ``x`` without its last dimension; int64 and float32.
        Neither carries a gradient; :func:`vqkernels.quantize` does.

    Numerics:
        The choice is that of the float64 evaluation of the inputs as given: same indices and same distance bits
        on every backend and thread count. A vector with a non-finite entry gets index 0 and distance NaN. A code
        with a non-finite entry is never chosen unless there is no other. The cosine of float64 vectors is right at
        any length; squared distances from all codes beyond float64 give index 0 and distance inf, a dot product
        beyond it index 0 and distance NaN.

    Raises:
        TypeError: if a tensor is not floating point.
        ValueError: on shapes or devices that do not match, an empty codebook, an unknown metric or backend.
        NotImplementedError: if the backend asked for cannot run this call.

    Example:
        >>> import torch, vqkernels
        >>> codebook = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        >>> vqkernels.nearest_code(torch.tensor([[0.9, 0.8], [0.1, 0.0]]), codebook).indices
        tensor([1, 0])
    """
    check_floating("x", x)
    check_floating("codebook", codebook)
    check_metric(metric)
    check_backend(backend)
    check_codebook(codebook)
    check_vectors(x, codebook)
    check_same_device(x=x, codebook=codebook)
    grouped = codebook if codebook.dim() == 3 else codebook[None]
    rows, grouped = x.detach().reshape(-1, grouped.shape[0], grouped.shape[2]), grouped.detach()
    indices, distance = nearest_code_op(compared(rows, metric), compared(grouped, metric), metric, backend)
    if torch.float64 in (x.dtype, codebook.dtype):
        distance = told(distance[..., None], rows, grouped, indices[..., None], metric)
    shape = x.shape[:-1]
    return NearestCode(indices.reshape(shape), distance.reshape(shape))
