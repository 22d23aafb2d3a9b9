"""Quantization as one function: lookup, gather, gradient estimator."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vqkernels.ops.gather_codes import gather_codes
from vqkernels.ops.nearest_code import nearest_code
from vqkernels.ops.quantize.estimator import estimate_gradient


class Quantized(NamedTuple):
    """Result of :func:`quantize`."""

    quantized: torch.Tensor  # like x
    indices: torch.Tensor  # [...] int64
    distance: torch.Tensor  # [...] float32


def quantize(
    x: torch.Tensor,  # [..., D] or [..., G, D]
    codebook: torch.Tensor,  # [K, D] or [G, K, D]
    *,
    metric: str = "l2",
    gradient: str = "ste",
    backend: str | None = None,
) -> Quantized:
    """Replace every vector by its nearest code, differentiable in both arguments.

    Equivalent to ``c = codebook[nearest]; x + (c - x).detach()`` for the value and the gradient of ``x``, plus the
    plain gradient of the gather for ``codebook``. Pass ``codebook.detach()`` to train x alone.

    Args:
        x: vectors ``[..., D]``, or ``[..., G, D]`` with a grouped codebook.
        codebook: codes ``[K, D]`` or ``[G, K, D]``. With ``metric="cosine"`` the code is returned as stored, not
            normalised.
        metric: as in :func:`vqkernels.nearest_code`.
        gradient: as in :func:`vqkernels.estimate_gradient`.
        backend: a backend by name, or None.

    Returns:
        ``Quantized(quantized, indices, distance)``: the shape and dtype of ``x``; int64 and float32 without
        its last dimension.

    Numerics:
        The codebook gradient is summed in fixed point, deterministic, and only touches codes in use. A vector with a
        non-finite entry is quantized to code 0 with distance NaN.

    Raises:
        As :func:`vqkernels.nearest_code`; ``ValueError`` on an unknown ``gradient``.

    Example:
        >>> import torch, vqkernels
        >>> x = torch.tensor([[0.9, 0.8]], requires_grad=True)
        >>> vqkernels.quantize(x, torch.tensor([[0.0, 0.0], [1.0, 1.0]])).quantized.tolist()
        [[1.0, 1.0]]
    """
    indices, distance = nearest_code(x, codebook, metric=metric, backend=backend)
    codes = gather_codes(codebook, indices, backend=backend)
    return Quantized(estimate_gradient(x, codes, gradient), indices, distance)
