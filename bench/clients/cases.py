"""The quantizers of published models on a second of audio or an image, and whether they found the nearest codes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import torch

from bench.case import OpCase, Verdict, Work
from bench.clients.models import CLIENTS, Level, Problem, contestants, inputs, truth
from bench.gate import U32


def verify(problem: Problem, answers: Mapping[str, torch.Tensor], ours: frozenset[str]) -> dict[str, Verdict]:
    """Held against the library's quantizer in float64, level by level.

    Vectors of a level come of projections and of the levels before, in float32 for everyone: an index is wrong if
    its code is farther from the vector of float64 than rounding on the way explains. What follows a level on which
    an answer differs is another problem, and not checked.
    """
    levels = truth(problem)
    client = CLIENTS[problem.client]
    return {name: _verdict(answer, levels, client.channels, client.metric) for name, answer in answers.items()}


def _verdict(answer: torch.Tensor, levels: list[Level], width: int, metric: str) -> Verdict:
    ends = list(accumulate(len(level.indices) for level in levels))
    checked = different = wrong = 0
    if answer.numel() != ends[-1]:
        return Verdict(answer.numel(), 0, 0, answer.numel(), 0, False)
    for level, end in zip(levels, ends, strict=True):
        found = answer[end - len(level.indices) : end]
        off = (found != level.indices).nonzero().flatten()
        checked += len(found)
        different += len(off)
        if len(off):
            rows, codes = level.rows[off], level.codes
            chosen = codes[found[off].clamp(0, len(codes) - 1)]
            best = codes[level.indices[off]]
            operations = (rows.shape[1] + width + len(levels) + 6) * U32
            if metric == "dot":
                excess = (rows * (best - chosen)).sum(1)
                budget = 2 * operations * rows.norm(dim=1) * torch.maximum(best.norm(dim=1), chosen.norm(dim=1))
            else:
                excess = (rows - chosen).square().sum(1) - (rows - best).square().sum(1)
                longest = torch.maximum(best.norm(dim=1), chosen.norm(dim=1))
                budget = 2 * operations * (rows.norm(dim=1) + longest).square()
            wrong += int((~(excess <= budget)).sum())
            break
    return Verdict(answer.numel(), checked, different, wrong, 0, not wrong)


def _work(sizes: Mapping[str, int]) -> Work:
    n, k, d, levels = (sizes[letter] for letter in "NKDL")
    pairs = levels * n * k
    return Work(pairs=pairs, flops=2 * pairs * d, bytes=4 * levels * (n * d + k * d + 2 * n))


def _case(name: str, n: int, k: int, d: int, levels: int, note: str) -> OpCase:
    return OpCase(
        op="clients",
        name=name,
        sizes={"N": n, "K": k, "D": d, "L": levels},
        inputs=inputs[name],
        implementations=contestants(name),
        verify=verify,
        work=_work,
        smoke_sizes={"N": 16, "K": 64},
        needs=CLIENTS[name].library,
        note=note,
    )


CASES = (
    _case("encodec", 75, 1024, 128, 32, "a second at 24 kHz, all levels"),
    _case("dac", 87, 1024, 8, 9, "a second at 44.1 kHz"),
    _case("mimi", 13, 2048, 256, 32, "a second at 24 kHz, all levels"),
    _case("xcodec", 50, 1024, 1024, 8, "a second at 16 kHz"),
    _case("wavtokenizer", 40, 4096, 512, 1, "a second at 24 kHz"),
    _case("snac", 48, 4096, 8, 3, "a second at 24 kHz; levels of 12, 24 and 48 vectors"),
    _case("chameleon", 1024, 8192, 256, 1, "an image of 512 x 512"),
    _case("janus", 576, 16384, 8, 1, "an image of 384 x 384"),
    _case("glm-image", 4096, 16384, 2048, 1, "an image of 1024 x 1024, a size assumed here"),
    _case("emu3", 4096, 32768, 4, 1, "an image of 512 x 512"),
    _case("apertus", 1024, 131_072, 256, 1, "an image of 512 x 512, a size assumed here"),
)
