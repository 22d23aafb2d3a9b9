"""The definition of ``code_stats``: integer multiples of ``2**-s``, or float64 sums in row order."""

from __future__ import annotations

import torch

from vqkernels._core.checks import check_index_values
from vqkernels._core.powers import power_of_two
from vqkernels.ops.code_stats.op import fixed_point_shift, result_dtypes


def unsupported_reasons(*args: object) -> list[str]:
    return []


def run(
    x: torch.Tensor,  # [N, G, D]
    indices: torch.Tensor,  # [N, G]
    num_codes: int,
    weight: torch.Tensor | None,  # [N, G]
    grid: torch.Tensor | None,  # [G, K, 4]
    deterministic: bool,
    as_integers: bool,
    skip_nonfinite: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    check_index_values("indices", indices, num_codes)
    factor = torch.ones_like(indices, dtype=torch.float64) if weight is None else weight.double()
    addends = x.double() * factor[..., None]
    keep = indices >= 0
    if skip_nonfinite:
        keep = keep & addends.isfinite().all(dim=2) & factor.isfinite()
    bins = torch.where(keep, indices, num_codes)  # what is left out goes to a spare bin
    of_count, of_total = result_dtypes(x, as_integers)
    if grid is None:
        return _sums(factor, bins, num_codes).to(of_count), _sums(addends, bins, num_codes).to(of_total)
    shift, weight_shift = fixed_point_shift(grid)
    if weight is None:
        weight_shift = torch.zeros_like(shift)
    count = _sums(_multiples(factor, _of_each(weight_shift, bins)), bins, num_codes)
    total = _sums(_multiples(addends, _of_each(shift, bins)[..., None]), bins, num_codes)
    if as_integers:
        return count, total
    sums = total * power_of_two(-shift)[..., None]
    if not skip_nonfinite:
        lost = _sums((~addends.isfinite()).long(), bins, num_codes) > 0
        sums = torch.where(lost, torch.nan, sums)
    return (count * power_of_two(-weight_shift)).to(of_count), sums.to(of_total)


def _of_each(shift: torch.Tensor, bins: torch.Tensor) -> torch.Tensor:  # [G, K], [N, G] -> [N, G]
    """The shift of the code of each vector; any, for one that is left out."""
    return torch.cat([shift, shift[:, :1]], dim=1).gather(1, bins.t()).t()


def _multiples(values: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:  # [N, G, ...] float64 -> int64
    """Of ``2**-shift``, the nearest; ties go to the even one."""
    multiples = (values * power_of_two(shift)).round()
    return torch.where(values.isfinite(), multiples, 0.0).long()


def _sums(values: torch.Tensor, bins: torch.Tensor, num_codes: int) -> torch.Tensor:  # [N, G, ...] -> [G, K, ...]
    g = bins.shape[1]
    slot = bins + torch.arange(g, device=bins.device) * (num_codes + 1)
    out = values.new_zeros(g * (num_codes + 1), *values.shape[2:])
    out.index_add_(0, slot.reshape(-1), values.reshape(-1, *values.shape[2:]))
    return out.reshape(g, num_codes + 1, *values.shape[2:])[:, :num_codes].contiguous()
