"""The public measurement behind deterministic sums of several processes: checks, layout, one operator call."""

from __future__ import annotations

import torch

from vqkernels._core.checks import check_assigned, check_integer, check_size
from vqkernels.ops.code_range.op import code_range_op


def code_range(
    x: torch.Tensor,  # [..., D] or [..., G, D]
    indices: torch.Tensor,  # [...] or [..., G]
    num_codes: int,
    *,
    groups: int | None = None,
    weight: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:  # [K, 4] or [G, K, 4] int64
    """Measure vectors before they are summed per code, so that several batches can be summed on one grid.

    Equivalent to four reductions over the vectors that take part: for each code the exponents of
    ``(weight * x).abs().max()`` and of ``weight.abs().max()`` of its vectors; the number of vectors of all codes, and
    the number left out because they are not finite. Over several batches or processes the first two combine by their
    maximum, the others by their sum.

    Args:
        x: vectors ``[..., D]``; with ``groups``, ``[..., G, D]``.
        indices: code of each vector, int64 or int32 in ``[-1, num_codes)``, shaped like ``x`` without its last
            dimension; -1 leaves the vector out.
        num_codes: K.
        groups: as in :func:`vqkernels.code_stats`.
        weight: as in :func:`vqkernels.code_stats`.
        backend: a backend by name, or None.

    Returns:
        int64 ``[K, 4]``, or ``[G, K, 4]`` with ``groups``: what :func:`vqkernels.code_stats` takes as ``within``.

    Numerics:
        Exact: the exponent e is the least integer with ``|value| < 2**e``, at least -1022.

    Raises:
        IndexError: if an index is outside ``[-1, num_codes)``.
        TypeError: on a dtype that does not fit.
        ValueError: on shapes or devices that do not match, or ``num_codes < 1``.

    Example:
        >>> import torch, vqkernels
        >>> vqkernels.code_range(torch.tensor([[1.0], [5.0], [torch.nan]]), torch.tensor([0, 1, 1]), 2).tolist()
        [[1, 1, 2, 1], [3, 1, 2, 1]]
    """
    rows, index, weight = check_assigned(x, indices, groups, weight, backend)
    check_integer("num_codes", num_codes, 1)
    check_size("num_codes", G=rows.shape[1], K=num_codes, numbers=4)
    found: torch.Tensor = code_range_op(rows, index, num_codes, weight, True, backend)
    return found[0] if groups is None else found
