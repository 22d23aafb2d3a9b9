"""Numbers whose sums are as hard to add as can be: what one order of additions forgives, another does not.

A row holds magnitudes, a code signs and mantissas; every row meets every code. Entries are halves, or float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

_TOP = 15  # binary exponent of the largest entries: the largest of halves
# an entry all of whose bits count: as a half; as what two TF32 pieces cannot hold, the last bit of 12 being left over
_HARDEST = {torch.float16: 2.0 - 2.0**-10, torch.float32: 1.0 + 2.0**-11 - 2.0**-23}
_BELOW = {torch.float16: range(10, 29), torch.float32: range(18, 30)}  # binades between the large and the small


class Adversary(NamedTuple):
    """Rows and codes whose products are summed over C columns, and the name of each row."""

    names: list[str]  # [N]
    rows: torch.Tensor  # [N, C] float16 or float32
    codes: torch.Tensor  # [K, C] the same

    @property
    def exact(self) -> torch.Tensor:  # [N, K]
        """Products are exact in float64; of their sums, less than a millionth of any bound is lost."""
        return self.rows.double() @ self.codes.double().T

    @property
    def magnitude(self) -> torch.Tensor:  # [N, K]
        """Sums of magnitudes: what errors are relative to."""
        return self.rows.double().abs() @ self.codes.double().abs().T


def adversary(columns: int, dtype: torch.dtype) -> Adversary:
    """Sums of ``columns`` products of float16 or float32."""
    generator = torch.Generator().manual_seed(columns)
    names, rows = zip(*_rows(columns, dtype, generator), strict=True)
    codes = torch.stack(list(_codes(columns, _HARDEST[dtype], generator)))
    return Adversary(list(names), torch.stack(rows).to(dtype), codes.to(dtype))


def _rows(c: int, dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    hardest, column = _HARDEST[dtype], torch.arange(c)
    for below in _BELOW[dtype]:
        small = torch.full((c,), hardest * 2.0 ** (_TOP - below))
        for place in sorted({0, c // 2, c - 1}):
            # the small ones are lost one by one if they meet the large one alone, and not if they meet first
            yield f"one large at {place}, others 2^-{below}", torch.where(column == place, 2.0**_TOP, small)
        # cancels under a code that changes sign half way: what is left was added to something large
        ends = (column == 0) | (column == c // 2)
        yield f"two large, others 2^-{below}", torch.where(ends, 2.0**_TOP, small)
    yield "all equal", torch.full((c,), hardest * 2.0 ** (_TOP - 4))
    yield "ascending", hardest * (_TOP - 24 * (1 - (column + 1) / c)).floor().exp2()
    yield "descending", hardest * (_TOP - 24 * column / c).floor().exp2()
    yield "smallest half", torch.where(column == c - 1, 1.0, 2.0**-24)
    for number in range(4):
        mantissa = 1.0 + torch.rand(c, generator=generator)
        binade = torch.randint(-10, _TOP - 1, (c,), generator=generator)
        yield f"random binades {number}", torch.ldexp(mantissa, binade)
        yield f"gaussian {number}", torch.randn(c, generator=generator)


def _codes(c: int, hardest: float, generator: torch.Generator) -> Iterator[torch.Tensor]:
    column = torch.arange(c)
    alternating = 1.0 - 2.0 * (column % 2)
    yield torch.ones(c)
    yield torch.full((c,), hardest)
    yield hardest * alternating
    yield hardest * torch.where(column < c // 2, 1.0, -1.0)
    yield hardest * torch.where(column == 0, 1.0, -1.0)
    yield hardest * torch.where(column == c - 1, 1.0, -1.0)
    yield 1.0 + torch.rand(c, generator=generator)
    yield torch.randn(c, generator=generator)


def share(computed: torch.Tensor, problem: Adversary, bound: float) -> tuple[float, str]:
    """The greatest error over what is assumed of it, and the row that has it.

    Args:
        computed: sums ``[N, K]``.
        problem: what was summed.
        bound: the error assumed, over the sum of magnitudes.
    """
    shares = ((computed.double().cpu() - problem.exact).abs() / (bound * problem.magnitude)).amax(1)
    # NaN is beyond every bound
    worst = int(shares.nan_to_num(nan=math.inf).argmax())
    return float(shares[worst].nan_to_num(nan=math.inf)), problem.names[worst]
