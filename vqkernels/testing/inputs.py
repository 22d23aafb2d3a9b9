"""Lookup problems that hurt, by name: :data:`PROBLEMS`, :func:`lookup_problem`, and :func:`strided` views.

Values are drawn in float64 and rounded once: a problem is the same at every dtype, up to that rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

_INT_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class LookupProblem(NamedTuple):
    """Vectors and the codebook they are looked up in."""

    x: torch.Tensor  # [N, D] or [N, G, D]
    codebook: torch.Tensor  # [K, D] or [G, K, D]


class _Draw:
    """The sizes of one problem and its random numbers, grouped and in float64."""

    def __init__(self, n: int, k: int, d: int, groups: int, seed: int, dtype: torch.dtype) -> None:
        self.n, self.k, self.d, self.groups, self.dtype = n, k, d, groups, dtype
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, rows: int) -> torch.Tensor:  # [G, rows, D]
        return torch.randn(self.groups, rows, self.d, generator=self.generator, dtype=torch.float64)

    def integers(self, rows: int, bound: int) -> torch.Tensor:  # [G, rows, D] in [-bound, bound]
        shape = (self.groups, rows, self.d)
        return torch.randint(-bound, bound + 1, shape, generator=self.generator).double()

    def pick(self, rows: int, choices: int) -> torch.Tensor:  # [rows] in [0, choices)
        return torch.randint(choices, (rows,), generator=self.generator)


_Pair = tuple[torch.Tensor, torch.Tensor]  # [G, N, D], [G, K, D]


def _gaussian(draw: _Draw, scale: float = 1.0, shift: float = 0.0) -> _Pair:
    return draw.normal(draw.n) * scale + shift, draw.normal(draw.k) * scale + shift


def _exact_integers(draw: _Draw) -> _Pair:
    # every product and sum is exact in float32 up to D = 2**18, and ties abound
    return draw.integers(draw.n, 3), draw.integers(draw.k, 3)


def _clustered(draw: _Draw) -> _Pair:
    # most codes are far away, the few of the same cluster compete
    centers = 30.0 * draw.normal(max(1, draw.k // 4))
    x, codebook = (centers[:, draw.pick(rows, centers.shape[1])] for rows in (draw.n, draw.k))
    return x + 0.1 * draw.normal(draw.n), codebook + 0.1 * draw.normal(draw.k)


def _two_clusters(draw: _Draw) -> _Pair:
    # no single centre makes both small
    side_x, side_c = (2e4 * draw.pick(rows, 2)[:, None] - 1e4 for rows in (draw.n, draw.k))
    return side_x + draw.normal(draw.n), side_c + draw.normal(draw.k)


def _duplicates(draw: _Draw) -> _Pair:
    # few distinct codes, each many times; half of the vectors equal a code
    distinct = draw.normal(max(1, draw.k // 8))
    codebook = distinct[:, draw.pick(draw.k, distinct.shape[1])]
    x = draw.normal(draw.n)
    x[:, ::2] = codebook[:, draw.pick(x[:, ::2].shape[1], draw.k)]
    return x, codebook


def _all_equal(draw: _Draw) -> _Pair:
    point = draw.normal(1)
    return point.expand(-1, draw.n, -1), point.expand(-1, draw.k, -1)


def _near_ties(draw: _Draw) -> _Pair:
    # codes mirrored around the vectors, one coordinate moved by -1, 0 or +1 unit in the last place: about
    # K / N codes compete for a vector, with squared distances that differ in their last bits or not at all
    x = draw.normal(max(1, draw.n)).to(draw.dtype).double()
    step = draw.normal(x.shape[1])
    code = torch.arange(draw.k)
    owner, turn = code % x.shape[1], code // x.shape[1]
    sign = (1.0 - 2.0 * (turn % 2))[:, None]
    codebook = (x[:, owner] + sign * step[:, owner]).to(draw.dtype)
    bits = codebook.view(_INT_OF_SIZE[codebook.element_size()])
    bits[:, code, (turn // 2) % draw.d] += (draw.pick(draw.k, 3) - 1).to(bits.dtype)
    return x[:, : draw.n], codebook


def _outlier_code(draw: _Draw) -> _Pair:
    # a bound taken over the whole codebook is worth nothing
    codebook = draw.normal(draw.k)
    codebook[:, draw.k // 2] *= 1e6
    return draw.normal(draw.n), codebook


def _far_vectors(draw: _Draw) -> _Pair:
    # seen from 1e15 .. 1e30 all codes are in one place, and squares of the distance, or a bound, can overflow
    power = 15.0 + torch.arange(draw.n, dtype=torch.float64) % 16
    return 10.0 ** power[:, None] * draw.normal(draw.n), draw.normal(draw.k)


def _far_codebook(draw: _Draw) -> _Pair:
    # the rounding of a dot product is larger than what tells the codes apart
    return draw.normal(draw.n), 1e15 + draw.normal(draw.k)


def _zero_vectors(draw: _Draw) -> _Pair:
    # a cosine is not defined
    x, codebook = draw.normal(draw.n), draw.normal(draw.k)
    x[:, ::3], codebook[:, 1::3] = 0.0, 0.0
    return x, codebook


def _nonfinite(draw: _Draw) -> _Pair:
    # NaN, +inf or -inf in one coordinate of every second vector and code; the odd codes stay finite
    x, codebook = draw.normal(draw.n), draw.normal(draw.k)
    bad = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=torch.float64)
    for rows in (x, codebook):
        hit = torch.arange(0, rows.shape[1], 2)
        rows[:, hit, (hit // 2) % draw.d] = bad[(hit // 2) % 3]
    return x, codebook


def _no_finite_code(draw: _Draw) -> _Pair:
    return draw.normal(draw.n), torch.full_like(draw.normal(draw.k), torch.nan)


_RECIPES: dict[str, Callable[[_Draw], _Pair]] = {
    "gaussian": _gaussian,
    "exact-integers": _exact_integers,
    "clustered": _clustered,
    "two-clusters": _two_clusters,
    "duplicates": _duplicates,
    "all-equal": _all_equal,
    "near-ties": _near_ties,
    "offset-1e4": partial(_gaussian, shift=1e4),
    "offset-100-sigma": partial(_gaussian, shift=10.0, scale=0.1),
    "offset-1e13-sigma": partial(_gaussian, shift=1.0, scale=1e-13),  # distinct in float64 alone
    "scale-1e-20": partial(_gaussian, scale=1e-20),
    "scale-1e18": partial(_gaussian, scale=1e18),
    "largest-half": partial(_gaussian, scale=15000.0),
    "outlier-code": _outlier_code,
    "far-vectors": _far_vectors,
    "far-codebook": _far_codebook,
    "zero-vectors": _zero_vectors,
    "nonfinite": _nonfinite,
    "no-finite-code": _no_finite_code,
}

PROBLEMS = tuple(_RECIPES)


def lookup_problem(
    name: str,
    n: int,
    k: int,
    d: int,
    *,
    groups: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> LookupProblem:
    """Make one of the named problems; a pure function of its arguments.

    Args:
        name: one of :data:`PROBLEMS`.
        n: number of vectors, at least 0.
        k: number of codes, at least 1.
        d: code dimension, at least 1.
        groups: None for a flat codebook ``[K, D]``, G for ``[G, K, D]``.
        seed: seed of the random numbers.
        dtype: floating point dtype of both tensors.

    Returns:
        ``LookupProblem(x, codebook)``: ``[N, D], [K, D]``, or ``[N, G, D], [G, K, D]``, contiguous.

    Raises:
        ValueError: if no problem has this name.

    Example:
        >>> from vqkernels.testing import lookup_problem
        >>> x, codebook = lookup_problem("near-ties", 16, 64, 8, groups=2)
        >>> list(x.shape), list(codebook.shape)
        ([16, 2, 8], [2, 64, 8])
    """
    if name not in _RECIPES:
        raise ValueError(f"name: expected one of {', '.join(PROBLEMS)}, got {name!r}")
    pair = _RECIPES[name](_Draw(n, k, d, groups or 1, seed, dtype))
    x, codebook = (tensor.to(dtype) for tensor in pair)
    if groups is None:
        return LookupProblem(x[0].contiguous(), codebook[0].contiguous())
    return LookupProblem(x.transpose(0, 1).contiguous(), codebook.contiguous())


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same values without a unit stride; what lies between them is NaN (the lowest integer).

    Args:
        tensor: any shape, floating point or integer.

    Returns:
        A view into a larger tensor, not contiguous unless it has fewer than two elements.

    Example:
        >>> import torch
        >>> from vqkernels.testing import strided
        >>> view = strided(torch.ones(2, 3))
        >>> view.is_contiguous(), view.tolist()
        (False, [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    """
    gap = torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min
    wide = torch.full([2 * size + 1 for size in tensor.shape], gap, dtype=tensor.dtype, device=tensor.device)
    view = wide[tuple(slice(1, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)
