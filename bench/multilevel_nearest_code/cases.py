"""The problems: one index per vector, nearest by the weighted sum of the levels' distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from bench.case import OpCase, Verdict, Work
from bench.gate import WeightedL2, judge
from bench.multilevel_nearest_code.lookups import LOOKUPS
from bench.multilevel_nearest_code.problem import MultilevelProblem
from vqkernels.testing import lookup_problem


def _inputs(widths: Sequence[int], sizes: Mapping[str, int], seed: int) -> MultilevelProblem:
    n, k = sizes["N"], sizes["K"]
    levels = [lookup_problem("gaussian", n, k, d, seed=seed + level) for level, d in enumerate(widths)]
    xs, codebooks = zip(*levels, strict=True)
    # the weight of the first, semantic level is a parameter of the method; the others have one
    return MultilevelProblem(xs, codebooks, (0.5, *(1.0,) * (len(widths) - 1)))


def verify(
    problem: MultilevelProblem, answers: Mapping[str, torch.Tensor], ours: frozenset[str]
) -> dict[str, Verdict]:
    """Hold the indices of every implementation against the truth."""
    return judge(WeightedL2(*problem), answers, ours)


def _work(sizes: Mapping[str, int]) -> Work:
    n, k, d = (sizes[letter] for letter in "NKD")
    # a square root and a weighted sum per pair and level are not counted
    return Work(pairs=n * k, flops=2 * n * k * d, bytes=4 * (n + k) * d + 12 * n)


def _case(name: str, n: int, k: int, widths: Sequence[int], *, true_n: int | None = None, note: str) -> OpCase:
    return OpCase(
        op="multilevel_nearest_code",
        name=name,
        sizes={"N": n, "K": k, "D": sum(widths), "L": len(widths)},
        inputs=partial(_inputs, widths),
        implementations=LOOKUPS,
        verify=verify,
        work=_work,
        smoke_sizes={"N": 50, "K": 301},
        true_sizes={} if true_n is None else {"N": true_n},
        note=note,
    )


CASES = (
    _case("sgc-nuscenes", 5760, 8192, (8, 24), note="SGC-VQGAN, 8 high + 24 low, one step per device"),
    _case("sgc-imagenet", 4096, 16384, (8, 24), true_n=10240, note="SGC-VQGAN f8, 8 high + 24 low, one step"),
    _case("three-levels", 5760, 8192, (8, 24, 32), note="SGC-VQGAN with a third level of 32"),
)
