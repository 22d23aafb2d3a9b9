"""The public per-code statistics: checks, canonical layout, one operator call."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vqkernels._core.checks import (
    check_assigned,
    check_flag,
    check_floating_dtype,
    check_integer,
    check_same_device,
    check_shape,
    check_size,
    check_tensor,
)
from vqkernels._core.powers import power_of_two
from vqkernels._core.shown import shape_of
from vqkernels.ops.code_stats.op import code_stats_op, fixed_point_shift


class CodeStats(NamedTuple):
    """Result of :func:`code_stats`."""

    count: torch.Tensor  # type: ignore[assignment]  # [K] or [G, K] float32, int64 with `within`
    total: torch.Tensor  # [K, D] or [G, K, D] float32, int64 with `within`

    def rounded(
        self, within: torch.Tensor, *, weighted: bool = False, dtype: torch.dtype = torch.float32
    ) -> CodeStats:
        """The numbers that sums of fixed-point results, in the range ``within``, stand for."""
        for name, sums in (("count", self.count), ("total", self.total)):
            check_tensor(name, sums)
            if sums.dtype != torch.int64:
                raise TypeError(f"{name}: expected the int64 of a fixed-point result, got {sums.dtype}")
        if self.count.dim() not in (1, 2):
            raise ValueError(f"count: expected [K] or [G, K], got shape {shape_of(self.count)}")
        check_shape("total", self.total, (*self.count.shape, *self.total.shape[-1:]), "count.shape + [D]")
        _check_range(within, (*self.count.shape, 4), "count.shape + [4]")
        check_same_device(count=self.count, total=self.total, within=within)
        check_flag("weighted", weighted)
        check_floating_dtype("dtype", dtype)
        shift, weight_shift = fixed_point_shift(within)
        total = self.total * power_of_two(-shift)[..., None]
        count = self.count * power_of_two(-weight_shift) if weighted else self.count.double()
        return CodeStats(count.to(dtype), total.to(dtype))


def code_stats(
    x: torch.Tensor,  # [..., D] or [..., G, D]
    indices: torch.Tensor,  # [...] or [..., G]
    num_codes: int,
    *,
    groups: int | None = None,
    weight: torch.Tensor | None = None,
    deterministic: bool = True,
    within: torch.Tensor | None = None,
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
        deterministic: the result depends neither on the order of the vectors nor on the device. False lets a
            backend add floating point numbers in any order, which a GPU does faster.
        within: the range of all vectors whose sums will be added up, these among them, from
            :func:`vqkernels.code_range`. The results are then the int64 multiples of the fixed point grid: they add
            exactly over batches and processes, and :meth:`CodeStats.rounded` makes numbers of the sum.
        backend: a backend by name, or None.

    Returns:
        ``CodeStats(count, total)``: ``[K], [K, D]``, or ``[G, K], [G, K, D]`` with ``groups``; float32,
        ``total`` float64 for float64 ``x``; both int64 with ``within``.

    Numerics:
        Every addend is rounded to a multiple of 2^-s, an error of at most 2^-(s+1), and multiples are added as
        integers: the same bits in any order, on any backend, thread count and number of processes. With M vectors
        of a group that take part and 2^e above the largest ``|weight * x|`` of a code's own vectors,
        s = min(62 - ceil(log2 M), 51) - e: what other codes sum does not matter. Counts without a weight are exact. A
        vector with a non-finite entry, or a non-finite weight, is left out.

    Raises:
        IndexError: if an index is outside ``[-1, num_codes)``.
        TypeError: on a dtype that does not fit.
        ValueError: on shapes or devices that do not match, ``num_codes < 1``, or ``within`` with
            ``deterministic=False``.

    Example:
        >>> import torch, vqkernels
        >>> x = torch.tensor([[1.0], [2.0], [4.0]])
        >>> vqkernels.code_stats(x, torch.tensor([0, 0, 1]), 3).total.squeeze(1)
        tensor([3., 4., 0.])
    """
    rows, index, weight = check_assigned(x, indices, groups, weight, backend)
    check_integer("num_codes", num_codes, 1)
    deterministic = check_flag("deterministic", deterministic)
    check_size("num_codes", G=rows.shape[1], K=num_codes, D=rows.shape[2])
    if within is not None:
        within = _check_within(within, x, groups, num_codes, deterministic)
    count, total = code_stats_op(rows, index, num_codes, weight, within, deterministic, True, backend)
    return CodeStats(count[0], total[0]) if groups is None else CodeStats(count, total)


def _check_within(
    within: torch.Tensor, x: torch.Tensor, groups: int | None, num_codes: int, deterministic: bool
) -> torch.Tensor:
    expected = (num_codes, 4) if groups is None else (groups, num_codes, 4)
    _check_range(within, expected, "[K, 4]" if groups is None else "[G, K, 4]")
    if not deterministic:
        raise ValueError("within: expected None with deterministic=False, got a tensor")
    if within.device != x.device:
        raise ValueError(f"within: expected a tensor on {x.device}, got one on {within.device}")
    return within.reshape(-1, num_codes, 4)


def _check_range(within: torch.Tensor, expected: tuple[int, ...], legend: str) -> None:
    check_tensor("within", within)
    if within.dtype != torch.int64:
        raise TypeError(f"within: expected int64, got {within.dtype}")
    check_shape("within", within, expected, legend)
