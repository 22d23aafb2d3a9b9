"""The public measurement behind deterministic sums of several processes: checks, layout, one operator call."""

from __future__ import annotations

import torch

from vqkernels._core.checks import check_assigned
from vqkernels.ops.code_range.op import code_range_op


def code_range(
    x: torch.Tensor,  # [..., D] or [..., G, D]
    indices: torch.Tensor,  # [...] or [..., G]
    *,
    groups: int | None = None,
    weight: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:  # [4] or [G, 4] int64
    """Measure vectors before they are summed per code, so that several batches can be summed on one grid.

    Equivalent to four reductions over the vectors that take part: the exponents of ``(weight * x).abs().max()`` and
    of ``weight.abs().max()``, their number, and the number left out because they are not finite. Over several
    batches or processes the first two combine by their maximum, the others by their sum.

    Args:
        x: vectors ``[..., D]``; with ``groups``, ``[..., G, D]``.
        indices: code of each vector, int64 or int32, shaped like ``x`` without its last dimension; -1 leaves the
            vector out.
        groups: as in :func:`vqkernels.code_stats`.
        weight: as in :func:`vqkernels.code_stats`.
        backend: a backend by name, or None.

    Returns:
        int64 ``[4]``, or ``[G, 4]`` with ``groups``: what :func:`vqkernels.code_stats` takes as ``within``.

    Numerics:
        Exact: the exponent e is the least integer with ``|value| < 2**e``, at least -1022.

    Raises:
        TypeError: on a dtype that does not fit.
        ValueError: on shapes or devices that do not match.

    Example:
        >>> import torch, vqkernels
        >>> vqkernels.code_range(torch.tensor([[1.0], [5.0], [torch.nan]]), torch.tensor([0, 1, 1])).tolist()
        [3, 1, 2, 1]
    """
    rows, index, weight = check_assigned(x, indices, groups, weight, backend)
    found: torch.Tensor = code_range_op(rows, index, weight, True, backend)
    return found[0] if groups is None else found


def joint_range(ranges: torch.Tensor) -> torch.Tensor:  # [B, ..., 4] -> [..., 4]
    """The range of the vectors of B batches, of which each has been measured."""
    return torch.cat([ranges[..., :2].amax(dim=0), ranges[..., 2:].sum(dim=0)], dim=-1)
