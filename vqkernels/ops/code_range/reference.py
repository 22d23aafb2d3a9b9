"""The definition of ``code_range`` in plain torch."""

from __future__ import annotations

import torch

from vqkernels._core.checks import check_index_values
from vqkernels._core.powers import LOWEST, exponent_above


def unsupported_reasons(*args: object) -> list[str]:
    return []


def run(
    x: torch.Tensor,  # [N, G, D]
    indices: torch.Tensor,  # [N, G]
    num_codes: int,
    weight: torch.Tensor | None,  # [N, G]
    skip_nonfinite: bool,
) -> torch.Tensor:  # [G, K, 4] int64
    check_index_values("indices", indices, num_codes)
    factor = torch.ones_like(indices, dtype=torch.float64) if weight is None else weight.double()
    addends = x.double() * factor[..., None]
    finite = addends.isfinite().all(dim=2) & factor.isfinite()
    named = indices >= 0
    taken = named & finite if skip_nonfinite else named
    entry = torch.where(addends.isfinite(), addends.abs(), 0.0).amax(dim=2)
    bins = torch.where(taken, indices, num_codes)  # what is left out goes to a spare bin
    numbers = torch.stack([taken.sum(dim=0), (named & ~finite).sum(dim=0)], dim=1)  # [G, 2]
    exponents = [_largest_exponent(each, bins, num_codes) for each in (entry, factor.abs())]
    return torch.cat([torch.stack(exponents, dim=2), numbers[:, None].expand(-1, num_codes, -1)], dim=2)


def _largest_exponent(
    magnitude: torch.Tensor, bins: torch.Tensor, num_codes: int
) -> torch.Tensor:  # [N, G] -> [G, K]
    """The least e with ``magnitude < 2**e`` for all finite ones of a code."""
    exponent = exponent_above(torch.where(magnitude.isfinite(), magnitude, 0.0))
    lowest = exponent.new_full((bins.shape[1], num_codes + 1), LOWEST)
    return lowest.scatter_reduce(1, bins.t(), exponent.t(), "amax")[:, :num_codes]
