"""Run a benchmark: correctness first, then interleaved timing of every implementation on every case."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench import memory, record, table
from bench.arguments import Parser, file_to_write, integer, seconds
from bench.case import DEVICES, Call, Implementation, OpCase, Setting
from bench.ceiling import Ceiling, middle
from bench.device import Device, device_for
from bench.machine import ROOT, environment, limited_threads
from bench.ours import KEPT_MIB, OURS
from bench.registry import OPS, cases_on
from bench.timing import Timing, measure

_EPILOG = """\
examples:
  python -m bench.run --op nearest_code                 every case; written to bench/results/nearest_code/
  python -m bench.run --op nearest_code --case vqgan    the cases with "vqgan" in their name
  python -m bench.run --op nearest_code --device cuda   full sizes on a GPU, with the peers that exist there
  python -m bench.run --op nearest_code --memory        also peak memory, each in a process of its own
  python -m bench.run --op nearest_code --smoke         tiny sizes: does everything work here?
  python -m bench.run --op nearest_code --list          the cases and the implementations

how to read the table:
  median, 20-80 %   time per call and its quantiles over all rounds
  % peak            share of what the machine can do at most, measured in the same run
  time              relative to ours: 2x took twice as long
  indices           "exact": equal to the float64 truth; "differ by rounding": another index, no farther than
                    float32 arithmetic explains; "WRONG": farther than that, as TF32 and half precision are.
                    "+0.1%" (k-means): the inertia, above the least of all by so much; "WRONG": by over 0.5 %.
                    Ours must be exact, or it is not timed and the exit code is 1

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
    max_seconds: float = 15.0  # one that takes longer gets fewer rounds
    deadline: float = math.inf  # by time.monotonic(); no case is begun past it

    def rehearsal(self) -> Options:
        """The same, as short as it can be."""
        return replace(self, rounds=1, min_seconds=0.0, ceiling_seconds=0.02)


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    everything = cases_on(args.op, args.device)
    cases = [case for case in everything if args.case in case.name]
    if not cases:
        names = ", ".join(case.name for case in everything)
        parser.error(f"--case: got {args.case!r}, expected part of one of {names}")
    if args.list:
        _list(cases, args.device)
        return 0
    if obstacle := next(i for i in cases[0].implementations if i.name == OURS).missing(args.device):
        parser.error(f"--op: {obstacle}")
    options = Options(
        threads=args.threads,
        rounds=args.rounds,
        min_seconds=args.min_seconds,
        seed=args.seed,
        memory=args.memory,
        flags=frozenset({"--compile"} if args.compile else ()),
        ceiling_seconds=0.2 if args.device == "cpu" else 0.05,
    )
    if args.smoke:
        cases = [case.smoke() for case in cases]
        options = options.rehearsal()
    whole = not args.smoke and len(cases) == len(everything)
    try:
        device = device_for(args.device, args.threads, 0.0 if args.smoke else 0.05)
    except ValueError as error:
        parser.error(f"--{error}")
    os.environ[KEPT_MIB] = "0"  # also of processes that measure memory
    try:
        with limited_threads(options.threads):
            run = execute(args.op, cases, device, options, args.json, whole=whole)
    except OSError as error:
        parser.error(str(error))
    print("\n" + table.summary(run) + "\n\n" + table.conditions(run))
    return 0 if run.green else 1


def execute(
    op: str, cases: Sequence[OpCase], device: Device, options: Options, json: Path | None, *, whole: bool
) -> record.Run:
    """Run the cases; print and write after each, so that a cut-off run counts."""
    everyone = {i.name: i for case in cases for i in case.implementations}
    stamp = environment(everyone.values(), device, threads=options.threads, seed=options.seed)
    if stamp["load_average"] > 0.5:
        _progress(f"load average {stamp['load_average']}: somebody else is at work, figures will be noisy")
    run = record.Run(record.SCHEMA, op, False, stamp, options.rounds, options.min_seconds, [])
    if json is None and whole:
        json = ROOT / "bench" / "results" / op / run.file_name()
    for number, case in enumerate(cases, start=1):
        if time.monotonic() > options.deadline:
            _progress(f"no time left for {case.name} and what follows")
            break
        _progress(f"[{number}/{len(cases)}] {case.name}: {table.sizes(case)}")
        if reason := case.missing():
            _progress(f"    left out: {reason}")
            whole = False
            continue
        run.cases.append(run_case(case, device, options))
        run.complete = whole and number == len(cases)
        print("\n" + table.case_table(run.cases[-1]), flush=True)
        if json is not None:
            record.save(run, json)
    _progress(f"written: {os.path.relpath(json)}" if json else "not written: part of the cases (use --json PATH)")
    return run


def run_case(case: OpCase, device: Device, options: Options) -> record.CaseRecord:
    """Check, then time, then weigh every implementation on one case."""
    skipped = {i.name: reason for i in case.implementations if (reason := _reason_to_skip(i, device, options))}
    able = [i for i in case.implementations if i.name not in skipped]
    problem = device.place(case.inputs(case.sizes, options.seed))
    settings: dict[str, Setting] = {}
    calls: dict[str, Call] = {}
    answers: dict[str, Any] = {}
    for i in list(able):
        _progress(f"    {i.name}: first run")
        try:
            setting = fastest_setting(i, problem, device)
            call = i.prepare(problem, **setting)
            answers[i.name] = call()
        except Exception as error:
            # whatever a peer dies of, the others are measured; ours may not die
            if i.ours:
                raise
            able.remove(i)
            skipped[i.name] = f"failed: {last_line(error)}"
            continue
        settings[i.name], calls[i.name] = setting, call
    _progress("    float64 truth")
    verdicts = case.verify(problem, answers, frozenset(i.name for i in able if i.ours))
    del answers
    # a wrong answer of ours has no speed; a wrong peer is timed and says so
    to_time = {i.name: calls[i.name] for i in able if verdicts[i.name].passed or not i.ours}
    timings, ceiling = _time(to_time, device, options)
    peaks = _weigh(case, able, problem, settings, device, options)
    work = case.work(case.sizes)
    measurements = []
    for i in able:
        described, timing = i.describe(problem), timings.get(i.name)
        arithmetic = described.get("arithmetic", i.arithmetic)
        measurements.append(
            record.Measurement(
                i.name,
                i.version(),
                i.ours,
                {**settings[i.name], **{key: value for key, value in described.items() if key != "arithmetic"}},
                arithmetic,
                verdicts[i.name],
                timing,
                record.rates(work, ceiling, arithmetic, timing),
                peaks.get(i.name),
            )
        )
    sizes, true_sizes = dict(case.sizes), dict(case.true_sizes)
    return record.CaseRecord(case.name, case.note, sizes, true_sizes, work, ceiling, measurements, skipped)


def last_line(error: BaseException) -> str:
    """The last line of a traceback."""
    return traceback.format_exception_only(error)[-1].strip().splitlines()[0][:300]


def _time(calls: Mapping[str, Call], device: Device, options: Options) -> tuple[dict[str, Timing], Ceiling]:
    """Times of all calls, and the machine's ceiling, measured before each round."""
    ceilings: list[Ceiling] = []

    def between(number: int) -> None:
        _progress(f"    round {number + 1} of {options.rounds}")
        ceilings.append(device.ceiling(options.ceiling_seconds))

    timings = measure(
        calls,
        device,
        rounds=options.rounds,
        min_seconds=options.min_seconds,
        max_seconds=options.max_seconds,
        between=between,
    )
    return timings, middle(ceilings)


def _weigh(
    case: OpCase,
    able: Sequence[Implementation],
    problem: Any,
    settings: Mapping[str, Setting],
    device: Device,
    options: Options,
) -> dict[str, int]:
    peaks = {}
    for i in able:
        setting = settings[i.name]
        # what is compiled would be compiled once more
        unseen = i.own_memory or bool(i.flag)
        seen = None if unseen else device.peak_bytes(partial(i.prepare, problem, **setting))
        if seen is None and options.memory and device.kind == "cpu":
            _progress(f"    {i.name}: memory")
            seen = memory.peak_bytes(case, i.name, setting, threads=options.threads, seed=options.seed)
        if seen is not None:
            peaks[i.name] = seen
    return peaks


def fastest_setting(implementation: Implementation, problem: object, device: Device) -> Setting:
    """The setting whose second call is the shortest; one whose first is hopeless gets no second."""
    if len(implementation.settings) == 1:
        return implementation.settings[0]
    best, least = implementation.settings[0], math.inf
    for setting in implementation.settings:
        call = implementation.prepare(problem, **setting)
        first = device.samples(call, 0.0)[0]
        if first < 3 * least and (seconds := device.samples(call, 0.0)[0]) < least:
            best, least = setting, seconds
    return best


def _reason_to_skip(implementation: Implementation, device: Device, options: Options) -> str:
    if implementation.flag and implementation.flag not in options.flags:
        return f"asked for with {implementation.flag}"
    return implementation.missing(device.kind)


def _list(cases: Sequence[OpCase], device: str) -> None:
    print("cases (scaled-down sizes beside the true ones):")
    print(table.align(("", "sizes", ""), [(case.name, table.sizes(case), case.note) for case in cases], right=()))
    print("\nimplementations:")
    everyone = {i.name: i for case in cases for i in case.implementations}
    rows = [(i.name, i.missing(device) or i.version(), i.flag, i.note) for i in everyone.values()]
    print(table.align(("", "version", "flag", ""), rows, right=()))


def _progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m bench.run",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--op", choices=OPS, required=True, help="what to benchmark")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where (default %(default)s)")
    parser.add_argument("--case", default="", metavar="SUBSTRING", help="only the cases with this in their name")
    parser.add_argument("--list", action="store_true", help="tell the cases and implementations, run nothing")
    parser.add_argument(
        "--smoke", action="store_true", help="every case at tiny sizes, one round; figures mean nothing"
    )
    parser.add_argument(
        "--memory",
        action="store_true",
        help="measure peak memory too (on the CPU a process each; on a GPU it is always measured)",
    )
    parser.add_argument("--compile", action="store_true", help="let torch.compile take part (compiles for minutes)")
    parser.add_argument(
        "--threads", type=integer(1, 1024), default=cores, help="threads for everyone (default: all, %(default)s)"
    )
    parser.add_argument("--rounds", type=integer(1, 1000), default=5, help="interleaved rounds (default %(default)s)")
    parser.add_argument(
        "--min-seconds",
        type=seconds,
        default=1.0,
        help="least time spent in each implementation (default %(default)s)",
    )
    parser.add_argument("--seed", type=integer(0, 2**32 - 1), default=0, help="of the inputs (default %(default)s)")
    parser.add_argument(
        "--json",
        type=file_to_write,
        metavar="PATH",
        help="write here; by default only a run of all cases is written",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
