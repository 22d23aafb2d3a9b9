"""Small problems for the C++ kernels, each a pure function of a seed: bits must be the same on every instruction set.

``python tests/ops/isa_problems.py`` runs 100,000 of them on every instruction set of this processor and prints the
seeds of those whose bits differ; ``--emulated aarch64 x86`` compares with emulated kernels as well.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from rich.console import Console
from rich.progress import track

sys.path.insert(0, str(Path(__file__).parents[1]))

from emulated import MACHINES, Machine, Processor, compile_driver, kernels_on
from multilevel import multilevel_problem
from variants import processor_isas

from vqkernels import (
    code_range,
    code_stats,
    ema_update_,
    gather_codes,
    multilevel_nearest_code,
    nearest_code,
    top_codes,
)
from vqkernels.ops.draw_rows import draw_rows
from vqkernels.testing import PROBLEMS, lookup_problem

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
METRICS = ("l2", "cosine", "dot")
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}

Results = tuple[torch.Tensor, ...]


class IsaProblem(NamedTuple):
    """A call that is ready to be made, any number of times."""

    name: str
    run: Callable[[], Results]


class _Sizes(NamedTuple):
    n: int
    k: int
    d: int


def _size(draw: random.Random, most: int) -> int:
    """Small ones as often as large ones."""
    return min(most, int((most + 1) ** draw.random()))


def _sizes(draw: random.Random, work: int) -> _Sizes:
    k, d = _size(draw, 4000), _size(draw, 300)
    return _Sizes(min(_size(draw, 300), max(1, work // (k * d))), k, d)


def _nearest(draw: random.Random, seed: int, work: int) -> IsaProblem:
    (n, k, d), groups = _sizes(draw, work), draw.choice((None, None, None, 2, 3))
    recipe, metric = draw.choice(PROBLEMS), draw.choice(METRICS)
    x, codebook = lookup_problem(recipe, n, k, d, groups=groups, seed=seed, dtype=draw.choice(DTYPES))
    codebook = codebook.to(draw.choice((x.dtype, *DTYPES)))
    named = f"nearest_code {recipe} {metric} N={n} K={k} D={d} G={groups} {x.dtype} {codebook.dtype}"
    return IsaProblem(named, lambda: tuple(nearest_code(x, codebook, metric=metric, backend="cpu")))


def _top(draw: random.Random, seed: int, work: int) -> IsaProblem:
    (n, k, d), recipe, metric = _sizes(draw, work), draw.choice(PROBLEMS), draw.choice(METRICS)
    x, codebook = lookup_problem(recipe, n, k, d, seed=seed, dtype=draw.choice(DTYPES))
    m = _size(draw, min(k, 200))
    named = f"top_codes {recipe} {metric} M={m} N={n} K={k} D={d} {x.dtype}"
    return IsaProblem(named, lambda: tuple(top_codes(x, codebook, m, metric=metric, backend="cpu")))


def _multilevel(draw: random.Random, seed: int, work: int) -> IsaProblem:
    n, k, d = _sizes(draw, work)
    dims = tuple(_size(draw, max(1, d)) for _ in range(draw.randint(1, 3)))
    recipes, squared = (draw.choice(PROBLEMS), draw.choice(PROBLEMS)), draw.random() < 0.5
    weights = [draw.choice((1.0, 0.3, 1e-3, 1e5)), *(draw.choice((0.0, 1.0, 2.5, 1e-9)) for _ in dims[1:])]
    problem = multilevel_problem(recipes, n, k, dims, dtype=draw.choice(DTYPES), seed=seed)
    named = (
        f"multilevel_nearest_code {recipes} squared={squared} {weights} N={n} K={k} D={dims} {problem.xs[0].dtype}"
    )
    return IsaProblem(
        named,
        lambda: tuple(multilevel_nearest_code(*problem, weights=weights, squared=squared, backend="cpu")),
    )


def _draw_rows(draw: random.Random, seed: int, work: int) -> IsaProblem:
    (n, k, d), recipe, metric = _sizes(draw, work), draw.choice(PROBLEMS), draw.choice((*METRICS, "levels"))
    x, codes = lookup_problem(recipe, n, k, d, seed=seed, dtype=draw.choice(DTYPES))
    width = max(1, d // 3)
    levels = metric == "levels" and d > 1
    books, points = ([t[:, :width], t[:, width:]] if levels else [t] for t in (codes, x))
    weights = [0.3, 1.0][-len(books) :]
    usable = torch.rand(n, generator=torch.Generator().manual_seed(seed)) > 0.1
    named = f"draw_rows {recipe} {metric} N={n} K={k} D={d} {x.dtype}"
    options = {"seed": seed, "metric": metric, "weights": weights, "backend": "cpu"}
    return IsaProblem(named, lambda: tuple(draw_rows(books, points, usable, **options)))


def _update(draw: random.Random, seed: int, work: int) -> IsaProblem:
    """What a training step does after its lookup: one code for all processors, which each compiles its own way."""
    (n, k, d), recipe = _sizes(draw, work), draw.choice(PROBLEMS)
    groups, normalize, deterministic = draw.randint(1, 3), draw.random() < 0.5, draw.random() < 0.7
    x, codebook = lookup_problem(recipe, n, k, d, groups=groups, seed=seed, dtype=draw.choice(DTYPES))
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(-1, k, (n, groups), generator=generator)
    weight = torch.rand(n, groups, generator=generator) if draw.random() < 0.5 else None
    named = (
        f"updates {recipe} N={n} K={k} D={d} G={groups} {x.dtype} {normalize} {deterministic} {weight is not None}"
    )

    def run() -> Results:
        options = {"groups": groups, "weight": weight, "backend": "cpu"}
        grid = code_range(x, indices, k, **options)
        stats = code_stats(x, indices, k, deterministic=deterministic, **options)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        state = [codebook.to(wide, copy=True), torch.ones(groups, k, dtype=wide), codebook.to(wide, copy=True)]
        step = [t.to(wide) for t in stats]
        ema_update_(*state, *step, decay=0.9, eps=1e-5, normalize=normalize, backend="cpu")
        return (grid, *stats, *state, gather_codes(codebook, indices, backend="cpu"))

    return IsaProblem(named, run)


OPS = (_nearest, _nearest, _top, _multilevel, _draw_rows, _update)


def isa_problem(seed: int, work: int) -> IsaProblem:
    """The problem of a seed, with at most about ``work`` products."""
    draw = random.Random(seed)
    return draw.choice(OPS)(draw, seed, work)


def same_bits(actual: Results, expected: Results) -> bool:
    """NaN is NaN: which of its bits are set differs between processors."""
    for a, b in zip(actual, expected, strict=True):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        if a.is_floating_point():
            a, b = (torch.where(t.isnan(), torch.nan, t).view(INTEGER[t.element_size()]) for t in (a, b))
        if not torch.equal(a, b):
            return False
    return True


def on_isa(isa: str, run: Callable[[], Results]) -> Results:
    with mock.patch.dict(os.environ, VQKERNELS_ISA=isa):
        return run()


def differences(seeds: Iterable[int], isas: list[str], emulated: Sequence[Processor], work: int) -> Iterator[str]:
    """A line for every problem and instruction set with other bits than the first instruction set."""
    for seed in seeds:
        problem = isa_problem(seed, work)
        expected = on_isa(isas[0], problem.run)
        for isa in isas[1:]:
            if not same_bits(on_isa(isa, problem.run), expected):
                yield f"seed {seed}: {isa} differs from {isas[0]}: {problem.name}"
        for processor in emulated:
            for isa in processor.machine.isas:
                with kernels_on(processor):
                    actual = on_isa(isa, problem.run)
                if not same_bits(actual, expected):
                    yield f"seed {seed}: {isa} of {processor.machine.name} differs from {isas[0]}: {problem.name}"


@contextmanager
def emulated_processor(machine: Machine) -> Iterator[Processor]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        processor = Processor(machine, compile_driver(machine, Path(folder)))
        stack.callback(processor.close)
        yield processor


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/ops/isa_problems.py", description=__doc__)
    parser.add_argument("--problems", type=int, default=100_000, help="how many (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="seed of the first (%(default)s)")
    parser.add_argument("--work", type=int, default=50_000, help="products of the largest (%(default)s)")
    parser.add_argument("--emulated", choices=MACHINES, nargs="+", default=[], help="emulate these kernels, too")
    options = parser.parse_args()
    isas = processor_isas()
    start, found = time.monotonic(), 0
    with ExitStack() as stack:
        machines = [MACHINES[name] for name in options.emulated]
        emulated = [stack.enter_context(emulated_processor(machine)) for machine in machines]
        seeds = range(options.first, options.first + options.problems)
        shown = track(seeds, "problems", console=Console(stderr=True))
        for line in differences(shown, isas, emulated, options.work):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
            found += 1
    names = [*isas, *(f"{isa} of {machine.name}" for machine in machines for isa in machine.isas)]
    sys.stdout.write(
        f"{options.problems} problems on {', '.join(names)}: {found} differences, {time.monotonic() - start:.0f} s\n"
    )
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
