"""Are the answers right? Asked before anything is timed.

Truth is the float64 evaluation of ``|x - c|^2``. Ours must equal it. Of a peer a different index is accepted
if float32 arithmetic explains it: with ``u = 2^-24`` and ``m`` the mean code, the expanded formula on centred
data errs by at most ``gamma (|x - m| + |c - m|)^2``, ``gamma = (D + 6) u / (1 - (D + 6) u)``: D products and
their sum, three terms to add, a square root. A careful float32 lookup misses by no more than twice that. The
expanded formula misses by more on data far from the origin, and is then called wrong.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

import vqkernels
from bench.case import Verdict
from vqkernels.testing import LookupProblem

_PRODUCTS = 1 << 29  # float64 work the truth may take
_MIN_ROWS, _MAX_ROWS = 8, 512
_U32 = 2.0**-24


def verify(problem: LookupProblem, answers: Mapping[str, torch.Tensor], ours: str) -> dict[str, Verdict]:
    """Hold the indices of every implementation against the truth.

    The truth is computed for a subset of the rows. On all rows each answer is held against every other: nobody
    may have found a nearer code than ours, or as near a code of lower index.
    """
    x, codebook = _grouped(problem)
    n, g, _ = x.shape
    rows = checked_rows(n, codebook)
    by_dimension = codebook.mT.contiguous().mT  # the reference walks along the codes, one dimension at a time
    truth = vqkernels.nearest_code(x[rows], by_dimension, backend="reference").indices
    best = _distance(x[rows], codebook, truth)
    # an answer of another shape is no answer
    given = {a: i.reshape(n, g) if i.numel() == n * g else torch.full((n, g), -1) for a, i in answers.items()}
    distances = {name: _distance(x, codebook, indices) for name, indices in given.items()}
    nearest = torch.stack(list(distances.values())).amin(0)
    lowest = torch.stack([torch.where(distances[a] == nearest, given[a], codebook.shape[1]) for a in given]).amin(0)

    mean = codebook.mean(1, dtype=torch.float64)
    verdicts = {}
    for name, indices in given.items():
        answer, distance = indices[rows], distances[name][rows]
        different = answer != truth
        wrong = different & ~(distance - best <= _budget(x[rows], codebook, mean, answer, truth))
        beaten = int(((distances[name] > nearest) | (indices != lowest)).sum())
        passed = not (different.any() or beaten) if name == ours else not wrong.any()
        verdicts[name] = Verdict(answer.numel(), int(different.sum()), int(wrong.sum()), beaten, passed)
    return verdicts


def checked_rows(num_rows: int, codebook: torch.Tensor) -> torch.Tensor:
    """Rows whose truth is computed: random but fixed, as many as the work allows, at least a few."""
    wanted = min(_MAX_ROWS, max(_MIN_ROWS, _PRODUCTS // codebook.numel()))
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(0))
    return order[:wanted].sort().values


def _grouped(problem: LookupProblem) -> tuple[torch.Tensor, torch.Tensor]:  # [N, G, D], [G, K, D]
    if problem.codebook.dim() == 3:
        return problem.x, problem.codebook
    return problem.x[:, None], problem.codebook[None]


def _codes(codebook: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:  # [G, K, D], [N, G] -> [N, G, D]
    return codebook[torch.arange(codebook.shape[0]), indices.clamp(0, codebook.shape[1] - 1)].double()


def _distance(
    x: torch.Tensor,  # [N, G, D]
    codebook: torch.Tensor,  # [G, K, D]
    indices: torch.Tensor,  # [N, G]
) -> torch.Tensor:  # [N, G]
    """Float64 squared distances, summed over d in order as the package defines them; inf for no such code."""
    codes, rows = _codes(codebook, indices), x.double()
    total = torch.zeros(x.shape[:2], dtype=torch.float64)
    for d in range(x.shape[2]):
        total += (rows[..., d] - codes[..., d]).square()
    return torch.where((indices >= 0) & (indices < codebook.shape[1]), total, torch.inf)


def _budget(
    x: torch.Tensor,  # [N, G, D]
    codebook: torch.Tensor,  # [G, K, D]
    mean: torch.Tensor,  # [G, D] float64
    answer: torch.Tensor,  # [N, G]
    truth: torch.Tensor,  # [N, G]
) -> torch.Tensor:  # [N, G]
    operations = (x.shape[2] + 6) * _U32
    length = (x.double() - mean).norm(dim=2)
    farther = torch.maximum(*((_codes(codebook, i) - mean).norm(dim=2) for i in (answer, truth)))
    budget: torch.Tensor = 2 * operations / (1 - operations) * (length + farther).square()
    return budget
