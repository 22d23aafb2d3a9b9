"""The definition of ``code_range`` in plain torch."""

from __future__ import annotations

import torch


def unsupported_reasons(*args: object) -> list[str]:
    return []


def run(
    x: torch.Tensor,  # [N, G, D]
    indices: torch.Tensor,  # [N, G]
    weight: torch.Tensor | None,  # [N, G]
    skip_nonfinite: bool,
) -> torch.Tensor:  # [G, 4] int64
    factor = torch.ones_like(indices, dtype=torch.float64) if weight is None else weight.double()
    addends = x.double() * factor[..., None]
    finite = addends.isfinite().all(dim=2) & factor.isfinite()
    named = indices >= 0
    taken = named & finite if skip_nonfinite else named
    return torch.stack(
        [
            _exponent_above(addends, taken[..., None]).amax(dim=1),
            _exponent_above(factor, taken),
            taken.sum(dim=0),
            (named & ~finite).sum(dim=0),
        ],
        dim=1,
    )


def _exponent_above(values: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:  # [N, ...] float64 -> [...] int64
    """The least e, at least -1022, with ``|value| < 2**e`` for all finite values of the vectors that take part."""
    magnitude = torch.where(taken & values.isfinite(), values.abs(), 0.0)
    largest = torch.cat([magnitude, magnitude.new_zeros(1, *magnitude.shape[1:])]).amax(dim=0)
    return (largest.view(torch.int64) >> 52) - 1022
