"""Training steps at sizes where the original is slow, and whether what they leave is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from bench.case import OpCase, Verdict, Work
from bench.gate import SquaredL2, judge
from bench.train_step.steps import DECAY, EPS, STEPS, Problem, Step
from vqkernels.testing import lookup_problem

_ERROR = 2.0**-14  # of a float32 mean or sum of N terms, relative to its size


def _inputs(sizes: Mapping[str, int], seed: int) -> Problem:
    x, codebook = lookup_problem("gaussian", *(sizes[letter] for letter in "NKD"), seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    return Problem(x, codebook, torch.randn(x.shape, generator=generator) / x.numel())


def verify(problem: Problem, answers: Mapping[str, torch.Tensor], ours: frozenset[str]) -> dict[str, Verdict]:
    """Indices as in a lookup; loss, gradient and codes in float64 for the indices that were found."""
    steps = {name: Step.of(answer, problem) for name, answer in answers.items()}
    geometry = SquaredL2(problem.x, problem.codebook)
    verdicts = judge(geometry, {name: step.indices for name, step in steps.items()}, ours)
    for name, step in steps.items():
        truth = _step(problem, step.indices)
        pairs = zip(step[1:], truth[1:], strict=True)
        wrong = sum(not bool((got - want).norm() <= _ERROR * want.norm()) for got, want in pairs)
        verdict = verdicts[name]
        verdicts[name] = replace(verdict, wrong=verdict.wrong + wrong, passed=verdict.passed and not wrong)
    return verdicts


def _step(problem: Problem, indices: torch.Tensor) -> Step:
    """The step in float64: straight-through gradient, running means that start from sizes of one."""
    x, codes, cotangent = (tensor.double() for tensor in problem)
    error = x - codes[indices]
    gradient = cotangent + 2 * error / error.numel()
    count = torch.ones_like(codes[:, 0]) * DECAY
    count = count.index_add(0, indices, torch.full_like(x[:, 0], 1 - DECAY))
    total = (codes * DECAY).index_add(0, indices, x * (1 - DECAY))
    smoothed = (count + EPS) / (count.sum() + len(codes) * EPS) * count.sum()
    return Step(indices, error.square().mean(), gradient, total / smoothed[:, None])


def _work(sizes: Mapping[str, int]) -> Work:
    n, k, d = (sizes[letter] for letter in "NKD")
    # the lookup; everything else is linear in N + K: codes, sums and sizes read and written
    return Work(pairs=n * k, flops=2 * n * k * d, bytes=4 * (6 * n * d + 5 * k * d))


def _case(name: str, n: int, k: int, d: int, note: str) -> OpCase:
    return OpCase(
        op="train_step",
        name=name,
        sizes={"N": n, "K": k, "D": d, "G": 1},
        inputs=_inputs,
        implementations=STEPS,
        verify=verify,
        work=_work,
        smoke_sizes={"N": 50, "K": 301},
        note=note,
    )


CASES = (
    _case("k16384-d64", 8192, 16384, 64, "a VQGAN batch"),
    _case("k100000-d8", 2048, 100_000, 8, "a large codebook of few dimensions"),
)
