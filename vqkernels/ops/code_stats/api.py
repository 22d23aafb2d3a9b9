"""The public per-code statistics: checks, canonical layout, one operator call."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vqkernels._core.backend import check_backend
from vqkernels._core.checks import check_floating, check_indices, check_same_device, check_shape
from vqkernels.ops.code_stats.op import code_stats_op


class CodeStats(NamedTuple):
    """Result of :func:`code_stats`."""

    count: torch.Tensor  # type: ignore[assignment]  # [K] or [G, K] float32
    total: torch.Tensor  # [K, D] or [G, K, D] float32


def code_stats(
    x: torch.Tensor,  # [..., D] or [..., G, D]
    indices: torch.Tensor,  # [...] or [..., G]
    num_codes: int,
    *,
    groups: int | None = None,
    weight: torch.Tensor | None = None,
    deterministic: bool = True,
    backend: str | None = None,
) -> CodeStats:
    """Count and sum the vectors assigned to each code, without a one-hot matrix.

    Equivalent to ``one_hot.sum(0), one_hot.T @ x``: the statistics of an EMA update and of the k-means M-step.

    Args:
        x: vectors ``[..., D]``; with ``groups``, ``[..., G, D]``.
        indices: code of each vector, int64 or int32 in ``[-1, num_codes)``, shaped like ``x`` without its last
            dimension. -1 leaves the vector out.
        num_codes: K.
        groups: None for one codebook; G to treat the second to last dimension of ``x`` as groups with a codebook
            each.
        weight: weight of each vector, shaped like ``indices``; a vector then counts ``weight`` times.
        deterministic: the result does not depend on the number of threads. Backends may offer a faster
            unordered sum with False.
        backend: a backend by name, or None.

    Returns:
        ``CodeStats(count, total)``: ``[K], [K, D]``, or ``[G, K], [G, K, D]`` with ``groups``; float32,
        ``total`` float64 for float64 ``x``.

    Numerics:
        Sums are accumulated in float64 in row order and rounded once. A vector with a non-finite entry, or a
        non-finite weight, is left out of both results.

    Raises:
        IndexError: if an index is outside ``[-1, num_codes)``.
        TypeError: on a dtype that does not fit.
        ValueError: on shapes or devices that do not match, or ``num_codes < 1``.

    Example:
        >>> import torch, vqkernels
        >>> x = torch.tensor([[1.0], [2.0], [4.0]])
        >>> vqkernels.code_stats(x, torch.tensor([0, 0, 1]), 3).total.squeeze(1)
        tensor([3., 4., 0.])
    """
    check_floating("x", x)
    check_indices("indices", indices)
    check_backend(backend)
    check_same_device(x=x, indices=indices, weight=weight)
    if num_codes < 1:
        raise ValueError(f"num_codes: expected at least 1, got {num_codes}")
    if x.dim() < (1 if groups is None else 2) or (groups is not None and x.shape[-2] != groups):
        legend = "[..., D]" if groups is None else f"[..., G={groups}, D]"
        raise ValueError(f"x: expected {legend}, got shape {list(x.shape)}")
    check_shape("indices", indices, tuple(x.shape[:-1]), "x.shape[:-1]")
    g = 1 if groups is None else groups
    if weight is not None:
        check_floating("weight", weight)
        check_shape("weight", weight, tuple(indices.shape), "indices.shape")
        weight = weight.detach().reshape(-1, g)
    rows = x.detach().reshape(-1, g, x.shape[-1])
    count, total = code_stats_op(rows, indices.reshape(-1, g).long(), num_codes, weight, deterministic, True, backend)
    return CodeStats(count[0], total[0]) if groups is None else CodeStats(count, total)
