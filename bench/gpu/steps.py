"""The steps of the suite by priority: what is right, ceilings, the cases that matter; then what time is left for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from bench.case import OpCase
from bench.gpu import bounds, probes, tools
from bench.gpu.context import Context
from bench.registry import OPS, cases_on
from bench.run import execute

# the cases that a session must have measured, the most wanted first, and who competes in them
CASES = {
    "nearest_code": ("vqgan-lc-f16", "vqgan-f8", "concept-tokens", "fc-ema-f16", "ibq", "mgvq-g4"),
    "train_step": ("k16384-d64", "k100000-d8"),
}
_RIVALS = ("torch tuned", "flash-kmeans fp32", "flash-kmeans fp16", "faiss-gpu", "vector-quantize-pytorch")


@dataclass(frozen=True)
class Step:
    """One step: what it answers, its share of the session, what it runs."""

    name: str
    title: str
    seconds: float  # at most
    run: Callable[[Context], None]
    fork: bool = True  # a process that has loaded torch; not where the step changes what is loaded


def _ceilings(context: Context) -> None:
    context.record("before", context.device.state())
    context.record("ceiling", dataclasses.asdict(context.device.ceiling(0.02 if context.smoke else 0.5)))
    context.record("after", context.device.state())


def cases_of(op: str, names: Sequence[str] = ()) -> list[OpCase]:
    """The cases of an op on a GPU: all of them, or these in this order, with few rivals."""
    cases = {case.name: case for case in cases_on(op, "cuda")}
    return [_with_few_rivals(cases[name]) for name in names] or list(cases.values())


def _with_few_rivals(case: OpCase) -> OpCase:
    # the original is a rival of a step; its lookup has never been the best one
    rivals = _RIVALS if case.op == "train_step" else _RIVALS[:-1]
    able = tuple(i for i in case.implementations if i.ours or i.name in rivals)
    return dataclasses.replace(case, implementations=able)


def _cases(op: str, names: Sequence[str], context: Context) -> None:
    context.require_gpu_backend(op)
    cases = cases_of(op, names)
    if context.smoke:
        # the interpreter takes a step per dimension
        cases = [min(cases, key=lambda case: case.sizes["D"]).smoke()]
    path = context.out / f"{op}{'-all' if not names else ''}.json"
    run = execute(op, cases, context.device, context.options, path, whole=not (context.smoke or names))
    context.record("cases", {"file": path.name, "measured": len(run.cases), "complete": run.complete})
    for case in run.cases:
        told = {m.implementation: m.timing.median for m in case.measurements if m.timing}
        context.record(case.name, {"green": case.green, "seconds": told, "skipped": case.skipped})
    if not run.green:
        raise RuntimeError(f"red gate: {', '.join(case.name for case in run.cases if not case.green)}")


# what a session must have, within its eight minutes
REQUIRED = (
    Step("build", "peers, extension, compiled kernels in place", 110, tools.build, fork=False),
    Step("bounds", "do tensor cores add as exactly as the proofs assume?", 25, bounds.addition),
    Step("tests", "does a sample of everything marked gpu pass?", 110, tools.tests),
    Step("ceilings", "matrix products in four arithmetics, copy", 10, _ceilings),
    Step("lookup", "lookup at true sizes", 110, partial(_cases, "nearest_code", CASES["nearest_code"])),
    Step("train_step", "a training step", 40, partial(_cases, "train_step", CASES["train_step"])),
    Step("updates", "sums per code under uniform and Zipf usage", 40, probes.updates),
    Step("entropy", "soft assignment entropy against a lookup", 30, probes.entropy),
)
# for the time that is left, and for other sessions, by --only
STEPS = (
    *REQUIRED,
    Step("launches", "how much of a call is the host's", 60, probes.launches),
    Step("sanitizers", "does any kernel touch what it must not?", 240, tools.sanitizers),
    Step("tiles", "shapes of a program of the Triton lookup", 200, probes.tile_shapes),
    Step("split", "pairs of halves against single halves", 150, probes.split_or_single),
    Step("counters", "which unit limits each kernel, by the profiler", 300, tools.counters),
    Step("rates", "integer minima of three, float minima, exponentials", 60, probes.instruction_rates),
    *(Step(f"all_{op}", f"all cases of {op}", 540, partial(_cases, op, ())) for op in OPS),
)
