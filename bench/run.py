"""Run a benchmark: correctness first, then interleaved timing of every implementation on every case."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from bench import memory, record, table
from bench.case import Call, Implementation, OpCase, Setting
from bench.machine import ROOT, Ceiling, environment, limited_threads, measure_ceiling
from bench.registry import OPS
from bench.timing import Timing, measure, once

_EPILOG = """\
examples:
  python -m bench.run --op nearest_code                 every case; written to bench/results/nearest_code/
  python -m bench.run --op nearest_code --case vqgan    the cases with "vqgan" in their name
  python -m bench.run --op nearest_code --memory        also peak memory, each in a process of its own
  python -m bench.run --op nearest_code --smoke         tiny sizes: does everything work here?
  python -m bench.run --op nearest_code --list          the cases and the implementations

how to read the table:
  median, 20-80 %   time per call and its quantiles over all rounds
  % peak            share of what the machine can do at most, measured in the same run
  time              relative to ours: 2x took twice as long
  indices           "exact": equal to the float64 truth; "differ by rounding": another index, no farther than
                    float32 arithmetic explains; "WRONG": farther than that. Ours must be exact, or it is not
                    timed and the exit code is 1

Run it on a quiet machine. bench/README.md tells the method.
"""


@dataclass(frozen=True)
class Options:
    """How to run, apart from what."""

    threads: int
    rounds: int
    min_seconds: float
    seed: int
    memory: bool = False
    flags: frozenset[str] = frozenset()
    ceiling_seconds: float = 0.2
    settle_seconds: float = 0.05


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    cases = [case for case in OPS[args.op] if args.case in case.name]
    if not cases:
        parser.error(f"--case: expected part of one of {', '.join(c.name for c in OPS[args.op])}, got {args.case!r}")
    if args.list:
        _list(cases)
        return 0
    options = Options(
        threads=args.threads,
        rounds=args.rounds,
        min_seconds=args.min_seconds,
        seed=args.seed,
        memory=args.memory,
        flags=frozenset({"--compile"} if args.compile else ()),
    )
    if args.smoke:
        cases = [case.smoke() for case in cases]
        options = replace(options, rounds=1, min_seconds=0.0, ceiling_seconds=0.02, settle_seconds=0.0)
    whole = not args.smoke and len(cases) == len(OPS[args.op])
    with limited_threads(options.threads):
        run = execute(args.op, cases, options, args.json, whole=whole)
    print("\n" + table.summary(run) + "\n\n" + table.conditions(run))
    return 0 if run.green else 1


def execute(op: str, cases: Sequence[OpCase], options: Options, json: Path | None, *, whole: bool) -> record.Run:
    """Run the cases; print and write after each, so that a cut-off run counts."""
    everyone = {i.name: i for case in cases for i in case.implementations}
    stamp = environment(op, everyone.values(), threads=options.threads, seed=options.seed)
    if stamp["load_average"] > 0.5:
        _progress(f"load average {stamp['load_average']}: somebody else is at work, figures will be noisy")
    run = record.Run(record.SCHEMA, op, False, stamp, options.rounds, options.min_seconds, [])
    if json is None and whole:
        json = ROOT / "bench" / "results" / op / run.file_name()
    for number, case in enumerate(cases, start=1):
        _progress(f"[{number}/{len(cases)}] {case.name}: {table.sizes(case)}")
        run.cases.append(run_case(case, options))
        run.complete = whole and number == len(cases)
        print("\n" + table.case_table(run.cases[-1]), flush=True)
        if json is not None:
            record.save(run, json)
    _progress(f"written: {os.path.relpath(json)}" if json else "not written: part of the cases (use --json PATH)")
    return run


def run_case(case: OpCase, options: Options) -> record.CaseRecord:
    """Check, then time, then weigh every implementation on one case."""
    skipped = {i.name: reason for i in case.implementations if (reason := _reason_to_skip(i, options))}
    able = [i for i in case.implementations if i.name not in skipped]
    problem = case.inputs(case.sizes, options.seed)
    settings: dict[str, Setting] = {}
    calls: dict[str, Call] = {}
    answers: dict[str, Any] = {}
    for i in able:
        _progress(f"    {i.name}: first run")
        settings[i.name] = fastest_setting(i, problem)
        calls[i.name] = i.prepare(problem, **settings[i.name])
        answers[i.name] = calls[i.name]()
    _progress("    float64 truth")
    verdicts = case.verify(problem, answers, next(i.name for i in able if i.ours))
    del answers
    # a wrong answer of ours has no speed; a wrong peer is timed and says so
    timings, ceiling = _time({i.name: calls[i.name] for i in able if verdicts[i.name].passed or not i.ours}, options)
    peaks = _weigh(case, settings, options) if options.memory else {}
    measurements = [
        record.Measurement(
            i.name,
            i.version(),
            i.ours,
            dict(settings[i.name]),
            verdicts[i.name],
            timings.get(i.name),
            peaks.get(i.name),
        )
        for i in able
    ]
    work = case.work(case.sizes)
    sizes, true_sizes = dict(case.sizes), dict(case.true_sizes)
    return record.CaseRecord(case.name, case.note, sizes, true_sizes, work, ceiling, measurements, skipped)


def _time(calls: Mapping[str, Call], options: Options) -> tuple[dict[str, Timing], Ceiling]:
    """Times of all calls, and the machine's ceiling, measured before each round."""
    ceilings: list[Ceiling] = []

    def between(number: int) -> None:
        _progress(f"    round {number + 1} of {options.rounds}")
        ceilings.append(measure_ceiling(options.threads, options.ceiling_seconds))

    timings = measure(
        calls,
        rounds=options.rounds,
        min_seconds=options.min_seconds,
        settle_seconds=options.settle_seconds,
        between=between,
    )
    flops, copied = median(c.flops for c in ceilings), median(c.bytes for c in ceilings)
    return timings, Ceiling(flops, ceilings[0].flops_source, copied)


def _weigh(case: OpCase, settings: Mapping[str, Setting], options: Options) -> dict[str, int]:
    peaks = {}
    for name, setting in settings.items():
        _progress(f"    {name}: memory")
        peaks[name] = memory.peak_bytes(case, name, setting, threads=options.threads, seed=options.seed)
    return peaks


def fastest_setting(implementation: Implementation, problem: object) -> Setting:
    """The setting whose second call is the shortest; one whose first is hopeless gets no second."""
    if len(implementation.settings) == 1:
        return implementation.settings[0]
    best, least = implementation.settings[0], math.inf
    for setting in implementation.settings:
        call = implementation.prepare(problem, **setting)
        if once(call) < 3 * least and (seconds := once(call)) < least:
            best, least = setting, seconds
    return best


def _reason_to_skip(implementation: Implementation, options: Options) -> str:
    if implementation.flag and implementation.flag not in options.flags:
        return f"asked for with {implementation.flag}"
    return implementation.missing()


def _list(cases: Sequence[OpCase]) -> None:
    print("cases (scaled-down sizes beside the true ones):")
    print(table.align(("", "sizes", ""), [(case.name, table.sizes(case), case.note) for case in cases], right=()))
    print("\nimplementations:")
    everyone = {i.name: i for case in cases for i in case.implementations}
    rows = [(i.name, i.version() if not i.missing() else i.missing(), i.flag, i.note) for i in everyone.values()]
    print(table.align(("", "version", "flag", ""), rows, right=()))


def _progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.run",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--op", choices=OPS, required=True, help="what to benchmark")
    parser.add_argument("--case", default="", metavar="SUBSTRING", help="only the cases with this in their name")
    parser.add_argument("--list", action="store_true", help="tell the cases and implementations, run nothing")
    parser.add_argument(
        "--smoke", action="store_true", help="every case at tiny sizes, one round; figures mean nothing"
    )
    parser.add_argument("--memory", action="store_true", help="measure peak memory too (a process each)")
    parser.add_argument("--compile", action="store_true", help="let torch.compile take part (compiles for minutes)")
    parser.add_argument("--threads", type=int, default=cores, help="threads for everyone (default: all, %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default %(default)s)")
    parser.add_argument(
        "--min-seconds",
        type=float,
        default=1.0,
        help="least time spent in each implementation (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (default %(default)s)")
    parser.add_argument(
        "--json", type=Path, metavar="PATH", help="write here; by default only a run of all cases is written"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
