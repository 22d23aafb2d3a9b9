"""The problems: several nearest codes per vector, as token replacement and soft assignments want them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bench.case import Implementation, OpCase, Verdict, Work
from bench.gate import SquaredL2, judge
from bench.top_codes.problem import TopProblem
from bench.top_codes.searches import FEW_SEARCHES, SHORT_SEARCHES
from vqkernels.testing import lookup_problem


def _inputs(sizes: Mapping[str, int], seed: int) -> TopProblem:
    n, k, d, m = (sizes[letter] for letter in "NKDM")
    return TopProblem(*lookup_problem("gaussian", n, k, d, seed=seed), m)


def verify(problem: TopProblem, answers: Mapping[str, torch.Tensor], ours: frozenset[str]) -> dict[str, Verdict]:
    """Hold the indices of every implementation against the truth."""
    return judge(SquaredL2(problem.x, problem.codebook), answers, ours, m=problem.m)


def _work(sizes: Mapping[str, int]) -> Work:
    n, k, d, m = (sizes[letter] for letter in "NKDM")
    # x and codebook are read, an int64 index and a float32 distance written per answer
    return Work(pairs=n * k, flops=2 * n * k * d, bytes=4 * (n + k) * d + 12 * n * m)


def _case(
    name: str,
    n: int,
    k: int,
    d: int,
    m: int,
    implementations: tuple[Implementation, ...],
    *,
    true_n: int | None = None,
    note: str,
) -> OpCase:
    return OpCase(
        op="top_codes",
        name=name,
        sizes={"N": n, "K": k, "D": d, "M": m},
        inputs=_inputs,
        implementations=implementations,
        verify=verify,
        work=_work,
        smoke_sizes={"N": 30, "K": 301, "M": min(m, 40)},
        true_sizes={} if true_n is None else {"N": true_n},
        note=note,
    )


CASES = (
    _case(
        "token-replacement",
        1024,
        100_000,
        8,
        1000,
        SHORT_SEARCHES,
        true_n=65536,
        note="VQGAN-LC, the 1000 nearest codes of each token of a batch",
    ),
    _case(
        "token-replacement-image",
        256,
        100_000,
        8,
        1000,
        SHORT_SEARCHES,
        note="VQGAN-LC, the tokens of one image",
    ),
    _case(
        "top16",
        2048,
        16384,
        64,
        16,
        FEW_SEARCHES,
        true_n=65536,
        note="a handful of candidates from a middling codebook",
    ),
)
