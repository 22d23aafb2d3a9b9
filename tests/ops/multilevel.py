"""Problems in several levels, and an oracle for them that uses none of the package's ops."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vqkernels import NearestCode
from vqkernels.testing import lookup_problem

U64 = 2.0**-53


class MultilevelProblem(NamedTuple):
    """Levels of vectors and of the codes they are looked up in."""

    xs: list[torch.Tensor]  # L of [N, D_l]
    codebooks: list[torch.Tensor]  # L of [K, D_l]


def multilevel_problem(
    names: tuple[str, ...],
    n: int,
    k: int,
    dims: tuple[int, ...],
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> MultilevelProblem:
    """A named lookup problem (``vqkernels.testing.PROBLEMS``) in every level; the names are used in turn."""
    levels = [
        lookup_problem(names[level % len(names)], n, k, d, dtype=dtype, seed=seed + level)
        for level, d in enumerate(dims)
    ]
    return MultilevelProblem([x for x, _ in levels], [codebook for _, codebook in levels])


def assert_exact_multilevel(
    problem: MultilevelProblem, weights: tuple[float, ...], squared: bool, result: NearestCode
) -> None:
    """Every code is one that some float64 evaluation of the direct form finds nearest, and its distance rounded.

    Such an evaluation errs by at most gamma(D + L + 4) of the sum, whose terms are all positive: a difference and a
    square per dimension (3 roundings that reach a term), D - 1 additions, a root, a weight, L - 1 additions.
    """
    xs, codebooks = ([t.double() for t in levels] for levels in problem)
    value = torch.zeros(xs[0].shape[0], codebooks[0].shape[0], dtype=torch.float64)
    for x, codebook, weight in zip(xs, codebooks, weights, strict=True):
        square = (x[:, None] - codebook[None]).square().sum(dim=2)
        value += (square if squared else square.sqrt()) * weight if weight else 0.0
    usable = torch.cat(codebooks, dim=1).isfinite().all(dim=1)
    value[:, ~usable] = torch.inf
    chosen = value.gather(1, result.indices[:, None])[:, 0]
    operations = max(x.shape[1] for x in xs) + len(xs) + 4
    slack = 2 * operations * U64 / (1 - operations * U64)
    lost = ~torch.cat(xs, dim=1).isfinite().all(dim=1) | value.min(dim=1).values.isinf()

    assert bool((~lost | ((result.indices == 0) & result.distance.isnan())).all()), "expected 0 and NaN"
    assert bool((lost | (chosen * (1 - slack) <= value.min(dim=1).values * (1 + slack))).all()), (
        "not the nearest code"
    )
    distance = result.distance.double()
    rounding = chosen * (2 * slack + 2.0**-24) + 2.0**-150
    assert bool((lost | (distance == chosen.float()) | ((distance - chosen).abs() <= rounding)).all()), "distance"

    # of codes that are the same in every level that counts, only the first may be chosen
    counted = [codebook for codebook, weight in zip(codebooks, weights, strict=True) if weight]
    _, group = torch.unique(torch.cat(counted, dim=1)[usable] + 0.0, dim=0, return_inverse=True)
    place = usable.nonzero()[:, 0]
    first = torch.full((int(group.max()) + 1 if len(group) else 0,), len(usable))
    first = first.scatter_reduce(0, group, place, "amin")
    lowest = torch.zeros(len(usable), dtype=torch.int64)
    lowest[place] = first[group]
    assert bool((lost | (lowest[result.indices] == result.indices)).all()), "an equal code has a lower index"
