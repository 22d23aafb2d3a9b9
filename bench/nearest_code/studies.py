"""What a first scan in fewer bits would leave open: ``python -m bench.nearest_code.studies``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from bench.kmeans.cases import photos
from bench.nearest_code.cases import CASES
from vqkernels import kmeans
from vqkernels.testing import LookupProblem

LANES, CODES = 16, 4  # a section: so many codes of a lane, which are evaluated together
_PAIRS = 1 << 24  # scores at a time

Rounding = Callable[[torch.Tensor, bool], torch.Tensor]  # of rows, which are codes or vectors


def _in_steps(rows: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    step = step.clamp_min(torch.finfo(rows.dtype).tiny)  # of rows of zeros
    return (rows / step).round() * step


def _int8(rows: torch.Tensor, codes: bool) -> torch.Tensor:
    """In 127 steps of a row's largest entry: ``vpdpbusd``, ``sdot``."""
    return _in_steps(rows, rows.abs().amax(1, keepdim=True) / 127)


def _int8_avx2(rows: torch.Tensor, codes: bool) -> torch.Tensor:
    """So that no sum of 32 products passes 16 bits: ``vpmaddubsw``, as in csrc/cpu/nearest_code_integers_avx2.cpp."""
    most, longest = (127, 218) if codes else (64, 150)
    pairs = torch.nn.functional.pad(rows, (0, -rows.shape[1] % 64)).view(len(rows), -1, 16, 2, 2)
    of_sums = pairs.square().sum(dim=(2, 4)).flatten(1).amax(1).sqrt() / (longest - 0.5 * 32**0.5)
    return _in_steps(rows, torch.maximum(rows.abs().amax(1) / most, of_sums)[:, None])


def _int16(rows: torch.Tensor, codes: bool) -> torch.Tensor:
    """In 32767 steps of a row's length, so that no sum passes 32 bits: ``vpmaddwd``, ``vpdpwssd``."""
    return _in_steps(rows, rows.norm(dim=1, keepdim=True) / 32767)


def _bfloat16(rows: torch.Tensor, codes: bool) -> torch.Tensor:
    """``vdpbf16ps``, or one product on tiles."""
    return rows.bfloat16().double()


ROUNDINGS: dict[str, Rounding] = {
    "int8 on AVX2": _int8_avx2,
    "int8": _int8,
    "bfloat16": _bfloat16,
    "int16": _int16,
}


class Left(NamedTuple):
    """What a scan leaves of each vector."""

    sections: torch.Tensor  # [N] how many may hold the nearest code
    open: torch.Tensor  # [N] is there a lane with more than the one that it knows of?
    within: torch.Tensor  # [N] how many codes have a bound no higher than the score of the nearest


def left(x: torch.Tensor, codebook: torch.Tensor, rounded: Rounding) -> Left:
    """What a scan leaves.

    Scores are those of rounded vectors and codes, less what rounding leaves out by Cauchy-Schwarz, with measured
    remainders of each vector and each code, in float64: no bound of this kind is tighter.
    """
    padding = -len(codebook) % (LANES * CODES)
    codes = rounded(codebook, True)  # [K, D]
    length, rest = codebook.norm(dim=1), (codebook - codes).norm(dim=1)
    half = codebook.square().sum(1) / 2
    found, within = [], []
    for rows in x.split(max(1, _PAIRS // len(codebook))):
        close = rounded(rows, False)
        error = (rows - close).norm(dim=1)[:, None] * length + close.norm(dim=1)[:, None] * rest
        lower, score = half - close @ codes.T - error, half - rows @ codebook.T  # [n, K]
        within.append((lower <= score.amin(1, keepdim=True)).sum(1))
        # the codes of the section with the lowest bound are evaluated first
        sections, exact = (
            torch.nn.functional.pad(scores, (0, padding), value=torch.inf).view(len(rows), -1, CODES, LANES).amin(2)
            for scores in (lower, score)
        )
        reached = exact.flatten(1).gather(1, sections.flatten(1).argmin(1, keepdim=True))
        found.append((sections <= reached[:, :, None]).sum(1))
    of_lanes = torch.cat(found)  # [N, LANES]
    return Left(of_lanes.sum(1), (of_lanes > 1).any(1), torch.cat(within))


def problems(shortest: int) -> Iterator[tuple[str, LookupProblem]]:
    """Cases of the bench without groups, of codes no shorter than this, and trained codes of photographs."""
    for case in CASES:
        if case.sizes["D"] >= shortest and case.sizes["G"] == 1:
            problem = case.inputs(case.sizes, 0)
            if isinstance(problem, LookupProblem):
                yield case.name, problem
    for k in (1000, 8192):
        x, start, _ = photos({"N": 50_000, "K": k, "D": 64, "I": 5}, 0)
        yield f"patches of photographs, K={k} D=64", LookupProblem(x, kmeans(x, k, init=start, max_iter=5).centroids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=512, help="vectors of a case (%(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        "what scans leave: vectors that lanes leave open, and sections that the others evaluate;",
        "codes within reach of a vector, mean and 95 %",
    )
    for name, problem in problems(32):
        codebook = problem.codebook.double()
        middle = codebook.mean(0)
        x = problem.x[:: max(1, len(problem.x) // args.rows)][: args.rows].double() - middle
        print(f"{name}:")
        for kind, rounding in ROUNDINGS.items():
            sections, open_, within = left(x, codebook - middle, rounding)
            print(
                f"  {kind}: {open_.double().mean():.1%}, {sections[~open_].double().mean():.2f};",
                f"{within.double().mean():.1f}, {within.double().quantile(0.95):.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
