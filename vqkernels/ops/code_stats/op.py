"""Operator ``vqkernels::code_stats``: the sums behind EMA, k-means and the backward of a gather."""

from __future__ import annotations

import torch

from vqkernels._core.backend import register_backends, select
from vqkernels._core.library import define_op
from vqkernels.ops.code_range.op import code_range_op

register_backends(
    "code_stats",
    triton="vqkernels.ops.code_stats.triton",
    cpu="vqkernels.ops.code_stats.cpu",
    reference="vqkernels.ops.code_stats.reference",
)


def _code_stats(
    x: torch.Tensor,  # [N, G, D]
    indices: torch.Tensor,  # [N, G] int64
    num_codes: int,
    weight: torch.Tensor | None,  # [N, G]
    within: torch.Tensor | None,  # [G, K, 4] int64: results are the multiples on the grid of this range
    deterministic: bool,
    skip_nonfinite: bool,  # False in a backward, where a NaN must stay visible
    backend: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # [G, K] float32, [G, K, D] float32 or float64; both int64 with `within`
    args = (x, indices, num_codes, weight, within, deterministic, within is not None, skip_nonfinite)
    chosen = select("code_stats", backend, *args)
    if deterministic and within is None and not getattr(chosen, "MEASURES", False):
        grid = code_range_op(x, indices, num_codes, weight, skip_nonfinite, backend)
        args = (x, indices, num_codes, weight, grid, deterministic, False, skip_nonfinite)
    count, total = chosen.run(*args)
    return count, total


def result_dtypes(x: torch.Tensor, as_integers: bool) -> tuple[torch.dtype, torch.dtype]:
    """Of count and total."""
    if as_integers:
        return torch.int64, torch.int64
    return torch.float32, torch.float64 if x.dtype == torch.float64 else torch.float32


def fixed_point_shift(grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # [..., 4] -> [...], [...] int64
    """The s for which total and count are sums of multiples of ``2**-s``; README.md has the reasons."""
    exponent, weight_exponent, vectors, _ = grid.unbind(-1)
    headroom = torch.frexp((vectors - 1).clamp(min=0).double()).exponent
    precision = (62 - headroom).clamp(max=51)
    return (precision - exponent).clamp(max=1000), (precision - weight_exponent).clamp(max=1000)


def _code_stats_fake(
    x: torch.Tensor,
    indices: torch.Tensor,
    num_codes: int,
    weight: torch.Tensor | None,
    within: torch.Tensor | None,
    deterministic: bool,
    skip_nonfinite: bool,
    backend: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    of_count, of_total = result_dtypes(x, within is not None)
    count = x.new_empty(x.shape[1], num_codes, dtype=of_count)
    return count, x.new_empty(x.shape[1], num_codes, x.shape[2], dtype=of_total)


code_stats_op = define_op(
    "code_stats(Tensor x, Tensor indices, SymInt num_codes, Tensor? weight, Tensor? within, bool deterministic, "
    "bool skip_nonfinite, str? backend) -> (Tensor, Tensor)",
    _code_stats,
    _code_stats_fake,
)
