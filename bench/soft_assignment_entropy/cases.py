"""Entropy losses of published tokenizers, one step forward and backward, and how right their gradients are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from bench.case import OpCase, Verdict, Work
from bench.soft_assignment_entropy.losses import LOSSES, Problem, fused
from vqkernels.testing import lookup_problem

_ERROR = 2.0**-7  # four times what ours promises of a logit: how far a gradient then is, to first order


def _inputs(unit: bool, temperature: float, sizes: Mapping[str, int], seed: int) -> Problem:
    x, codebook = lookup_problem("gaussian", *(sizes[letter] for letter in "NKD"), seed=seed)
    if unit:
        x, codebook = (t / t.norm(dim=1, keepdim=True) for t in (x, codebook))
    return Problem(x, codebook, temperature)


def verify(problem: Problem, answers: Mapping[str, torch.Tensor], ours: frozenset[str]) -> dict[str, Verdict]:
    """Loss and each gradient against the float64 definition, by relative distance."""
    wide = Problem(problem.x.double(), problem.codebook.double(), problem.temperature)
    parts = [1, problem.x.numel(), problem.codebook.numel()]
    truth = fused(wide, backend="reference").split(parts)
    verdicts = {}
    for name, answer in answers.items():
        pairs = zip(answer.split(parts), truth, strict=True)
        wrong = sum(not bool((got - want).norm() <= _ERROR * want.norm()) for got, want in pairs)
        verdicts[name] = Verdict(answers=3, checked=3, different=wrong, wrong=wrong, beaten=0, passed=not wrong)
    return verdicts


def _work(sizes: Mapping[str, int]) -> Work:
    n, k, d = (sizes[letter] for letter in "NKD")
    # what it takes without remembering pairs from forward to backward: four products of N K D, a score in each
    # direction and a sum for each gradient, and an exponential in each direction
    return Work(pairs=n * k, flops=8 * n * k * d, bytes=8 * (n + k) * d, exps=2 * n * k)


def _case(name: str, n: int, k: int, d: int, *, unit: bool, temperature: float, true_n: int, note: str) -> OpCase:
    return OpCase(
        op="soft_assignment_entropy",
        name=name,
        sizes={"N": n, "K": k, "D": d, "G": 1},
        inputs=partial(_inputs, unit, temperature),
        implementations=LOSSES,
        verify=verify,
        work=_work,
        smoke_sizes={"N": 50, "K": 301},
        true_sizes={"N": true_n},
        note=note,
    )


CASES = (
    _case("k16384-d32", 4096, 16384, 32, unit=False, temperature=1.0, true_n=65536, note="a middling codebook"),
    _case("llamagen", 4096, 16384, 8, unit=True, temperature=0.01, true_n=65536, note="LlamaGen, one step"),
    _case("seqgan", 4096, 1024, 256, unit=True, temperature=0.1, true_n=65536, note="SeQ-GAN on unit vectors"),
)
