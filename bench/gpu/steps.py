"""The steps of the suite, in order: correctness, ceilings, questions of design, cases."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bench.gpu import probes
from bench.gpu.context import Context, Unavailable
from bench.machine import ROOT
from bench.registry import OPS, cases_on
from bench.run import execute

_NO_TESTS = 5  # exit code of pytest when it has selected none


@dataclass(frozen=True)
class Step:
    """One step: what it answers, how long it may take, what it runs."""

    name: str
    title: str
    seconds: float  # at most
    run: Callable[[Context], None]


def _tests(context: Context) -> None:
    arguments = ["--collect-only", "tests/test_bench_gpu.py"] if context.smoke else []
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout, flush=True)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    failed = [line for line in lines if re.match(r"(FAILED|ERROR) ", line)]
    context.record("pytest -m gpu", {"exit code": done.returncode, "summary": lines[-1:], "failed": failed})
    if done.returncode == _NO_TESTS:
        raise Unavailable("no test is marked gpu")
    if done.returncode:
        raise RuntimeError(f"pytest -m gpu: {lines[-1] if lines else 'no output'}")


def _ceilings(context: Context) -> None:
    context.record("before", context.device.state())
    context.record("ceiling", dataclasses.asdict(context.device.ceiling(0.02 if context.smoke else 0.5)))
    context.record("after", context.device.state())


def _cases(op: str, context: Context) -> None:
    context.require_gpu_backend(op)
    cases = cases_on(op, "cuda")
    if context.smoke:
        cases = [case.smoke() for case in cases[:1]]
    path = context.out / f"{op}.json"
    run = execute(op, cases, context.device, context.options, path, whole=not context.smoke)
    context.record("cases", {"file": path.name, "measured": len(run.cases), "complete": run.complete})
    for case in run.cases:
        told = {m.implementation: m.timing.median for m in case.measurements if m.timing}
        context.record(case.name, {"green": case.green, "seconds": told, "skipped": case.skipped})
    if not run.green:
        raise RuntimeError(f"red gate: {', '.join(case.name for case in run.cases if not case.green)}")


STEPS = (
    Step("tests", "does everything marked gpu pass?", 240, _tests),
    Step("ceilings", "matrix products in four arithmetics, copy", 30, _ceilings),
    Step("rates", "integer minima of three, float minima, exponentials", 60, probes.instruction_rates),
    Step("lookup", "lookup against flash-kmeans over D and K", 300, probes.lookup_against_flash_kmeans),
    Step("tiles", "shapes of a program of the Triton lookup", 200, probes.tile_shapes),
    Step("split", "pairs of halves against single halves", 150, probes.split_or_single),
    Step("ambiguity", "what coarse passes leave undecided", 90, probes.ambiguity),
    Step("updates", "sums per code under uniform and Zipf usage", 120, probes.updates),
    Step("entropy", "soft assignment entropy against a lookup", 120, probes.entropy),
    *(Step(op, f"all cases of {op}", 540, partial(_cases, op)) for op in OPS),
)
