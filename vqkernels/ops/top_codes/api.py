"""The public top-M lookup: checks, canonical layout, one operator call."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vqkernels._core.backend import check_backend
from vqkernels._core.checks import (
    check_codebook,
    check_floating,
    check_integer,
    check_metric,
    check_same_device,
    check_vectors,
)
from vqkernels._core.wide import compared, told
from vqkernels.ops.top_codes.op import top_codes_op

MOST = 1024


class TopCodes(NamedTuple):
    """Result of :func:`top_codes`, nearest first."""

    indices: torch.Tensor  # [..., M] int64
    distance: torch.Tensor  # [..., M] float32


def top_codes(
    x: torch.Tensor,  # [..., D] or [..., G, D]
    codebook: torch.Tensor,  # [K, D] or [G, K, D]
    m: int,
    *,
    metric: str = "l2",
    backend: str | None = None,
) -> TopCodes:
    """Find the M nearest codes of every vector, exactly and in order, without an N x K matrix.

    Equivalent to ``torch.cdist(x.double(), codebook.double()).sort(-1, stable=True)`` cut after M places (for
    ``metric="l2"``), in O(N M + K) memory. Equally near codes stand in the order of their indices.

    Args:
        x: vectors ``[..., D]``, or ``[..., G, D]`` with a grouped codebook. float32, float64, float16 or
            bfloat16; halves are read directly.
        codebook: codes ``[K, D]``, or ``[G, K, D]``: group g of every vector is looked up in ``codebook[g]``.
        m: how many codes to return, 1 to ``min(K, 1024)``.
        metric: ``"l2"`` (squared distance), ``"cosine"`` (1 - cos; a zero vector has cos 0 to everything) or
            ``"dot"`` (-x.c). Smaller is nearer.
        backend: a backend by name, or None for the best one (see :func:`vqkernels.explain`).

    Returns:
        ``TopCodes(indices, distance)``, both shaped like ``x`` with M in place of the last dimension; int64 and
        float32. Neither carries a gradient.

    Numerics:
        The order is that of the float64 evaluation of the inputs as given: same indices and same distance bits on
        every backend and thread count; ``m=1`` is :func:`vqkernels.nearest_code`. Codes with a non-finite entry
        come last, in the order of their indices, at distance NaN. A vector with a non-finite entry gets index 0
        and distance NaN in all M places. The cosine of float64 vectors is right at any length. Finite codes whose
        squared distance is beyond float64 come after the others by their indices, at distance inf; where a dot
        product is beyond it, all M places have index 0 and distance NaN.

    Raises:
        TypeError: if a tensor is not floating point, or ``m`` not an integer.
        ValueError: on shapes or devices that do not match, an empty codebook, ``m`` out of range, an unknown
            metric or backend.
        NotImplementedError: if the backend asked for cannot run this call.

    Example:
        >>> import torch, vqkernels
        >>> codebook = torch.tensor([[0.0], [1.0], [2.0], [4.0]])
        >>> vqkernels.top_codes(torch.tensor([[1.5], [3.0]]), codebook, 3).indices
        tensor([[1, 2, 0],
                [2, 3, 1]])
    """
    check_floating("x", x)
    check_floating("codebook", codebook)
    check_metric(metric)
    check_backend(backend)
    check_codebook(codebook)
    check_vectors(x, codebook)
    check_same_device(x=x, codebook=codebook)
    check_integer("m", m, 1, min(codebook.shape[-2], MOST), "min(K, 1024)")
    grouped = codebook if codebook.dim() == 3 else codebook[None]
    rows, grouped = x.detach().reshape(-1, grouped.shape[0], grouped.shape[2]), grouped.detach()
    indices, distance = top_codes_op(compared(rows, metric), compared(grouped, metric), m, metric, backend)
    distance = told(distance, rows, grouped, indices, metric)
    shape = (*x.shape[:-1], m)
    return TopCodes(indices.reshape(shape), distance.reshape(shape))
