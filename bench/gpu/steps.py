"""The steps of the suite, in order: correctness, ceilings, questions of design, cases."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bench.gpu import bounds, probes, recipe, tools
from bench.gpu.context import Context
from bench.registry import OPS, cases_on
from bench.run import execute


@dataclass(frozen=True)
class Step:
    """One step: what it answers, how long it may take, what it runs."""

    name: str
    title: str
    seconds: float  # at most
    run: Callable[[Context], None]


def _ceilings(context: Context) -> None:
    context.record("before", context.device.state())
    context.record("ceiling", dataclasses.asdict(context.device.ceiling(0.02 if context.smoke else 0.5)))
    context.record("after", context.device.state())


def _cases(op: str, context: Context) -> None:
    context.require_gpu_backend(op)
    cases = cases_on(op, "cuda")
    if context.smoke:
        # the interpreter takes a step per dimension
        cases = [min(cases, key=lambda case: case.sizes["D"]).smoke()]
    path = context.out / f"{op}.json"
    run = execute(op, cases, context.device, context.options, path, whole=not context.smoke)
    context.record("cases", {"file": path.name, "measured": len(run.cases), "complete": run.complete})
    for case in run.cases:
        told = {m.implementation: m.timing.median for m in case.measurements if m.timing}
        context.record(case.name, {"green": case.green, "seconds": told, "skipped": case.skipped})
    if not run.green:
        raise RuntimeError(f"red gate: {', '.join(case.name for case in run.cases if not case.green)}")


STEPS = (
    Step("bounds", "do tensor cores add as exactly as the proofs assume?", 90, bounds.addition),
    Step("tests", "does everything marked gpu pass?", 360, tools.tests),
    Step("sanitizers", "does any kernel touch what it must not?", 240, tools.sanitizers),
    Step("ceilings", "matrix products in four arithmetics, copy", 30, _ceilings),
    Step("rates", "integer minima of three, float minima, exponentials", 60, probes.instruction_rates),
    Step("lookup", "lookup against flash-kmeans over D and K", 300, probes.lookup_against_flash_kmeans),
    Step("launches", "how much of a call is the host's", 60, probes.launches),
    Step("tiles", "shapes of a program of the Triton lookup", 200, probes.tile_shapes),
    Step("split", "pairs of halves against single halves", 150, probes.split_or_single),
    Step("ambiguity", "what coarse passes leave undecided", 90, probes.ambiguity),
    Step("updates", "sums per code under uniform and Zipf usage", 120, probes.updates),
    Step("entropy", "soft assignment entropy against a lookup", 120, probes.entropy),
    Step("counters", "which unit limits each kernel, by the profiler", 300, tools.counters),
    Step("recipe", "a tokenizer's training, and the quantizer's share of a step", 240, recipe.tokenizer_recipe),
    *(Step(op, f"all cases of {op}", 540, partial(_cases, op)) for op in OPS),
)
