"""A GPU session by one command in bounded time: build, correctness, ceilings, cases that matter; then the rest."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bench.device import Cuda, Device, Rehearsal
from bench.gpu import carried
from bench.gpu.context import Context, Unavailable
from bench.gpu.steps import REQUIRED, STEPS, Step
from bench.machine import environment
from bench.run import last_line

SCHEMA = 2
_LEAST = 10.0  # seconds a step is worth beginning with
_MINUTES, _RERUN_MINUTES = 8.0, 4.0

_EPILOG = f"""\
In DIR: suite.json (environment, and of each step its state, findings, reason, and the seconds at which it began, that
it was given and that it took), suite.log (all output), and the results of bench.run. suite.json is rewritten after
every step, and a step's findings so far are kept when it is cut off. Steps run in this order, each for its share of
the time at most. A session must have {", ".join(step.name for step in REQUIRED)};
the others take what time is left.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    began = time.monotonic()
    minutes = args.minutes or (_RERUN_MINUTES if args.rerun else _MINUTES)
    try:
        before = _ledger(args.rerun) if args.rerun else {"steps": {}}
    except (OSError, ValueError) as error:
        parser.error(f"--rerun: {error}")
    if (args.out / "suite.json").exists():
        parser.error(f"--out: expected a folder without a suite.json, got {args.out}")
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.smoke:
        _look_for_peers()
    try:
        device: Device = Rehearsal(threads=1) if args.smoke else Cuda()
    except ValueError as error:
        print(f"{error} (--smoke rehearses on the processor)", file=sys.stderr)
        return 2
    stamp = environment([], device, threads=1, seed=0)
    del device  # the steps are processes of their own and want the memory
    suite: dict[str, Any] = {
        "schema": SCHEMA,
        "smoke": args.smoke,
        "environment": stamp,
        "minutes": minutes,
        "steps": {},
    }
    if args.rerun:
        suite["completes"] = {key: before["environment"][key] for key in ("commit", "dirty", "date")}
    done = {name for name, outcome in before["steps"].items() if outcome["state"] == "done"}
    for step in STEPS:
        # a machine begins bare
        if step.name != "build" and ((args.only and step.name not in args.only) or step.name in done):
            continue
        start = time.monotonic() - began
        left = 60 * minutes - start
        limit = left if args.smoke else min(step.seconds, left)  # on a processor shares mean nothing
        outcome = run_step(step, args.out, limit, args.smoke) if limit >= _LEAST else {"state": "no time left"}
        suite["steps"][step.name] = {**outcome, "began": round(start, 1), "limit": round(max(0.0, limit), 1)}
        _write(args.out / "suite.json", suite)
        print(_line(step.name, suite["steps"][step.name]), flush=True)
    print(f"{time.monotonic() - began:.0f} s of {60 * minutes:.0f}")
    return 1 if any(outcome["state"] in ("failed", "cut off") for outcome in suite["steps"].values()) else 0


def _ledger(path: Path) -> dict[str, Any]:
    """What an earlier run left.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is none.
    """
    found: Any = json.loads(path.read_text())
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ValueError(f"expected a suite.json of schema {SCHEMA}, got {path}")
    return found


def _look_for_peers() -> None:
    """Have every process look where the step ``build`` will put the peers; a folder must be there to be looked at."""
    carried.PEERS.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(carried.PEERS), os.environ.get("PYTHONPATH"))))


def _line(name: str, outcome: dict[str, Any]) -> str:
    took = f"{outcome.get('seconds', 0):.0f}/{outcome['limit']:.0f} s"
    return f"{name:28} {outcome['state']:14} {took:>12}  {outcome.get('reason', '')}".rstrip()


def run_step(step: Step, out: Path, limit: float, smoke: bool) -> dict[str, Any]:
    """Run a step in a process of its own: it may hang, crash or spoil the device for whoever shares its process."""
    part = out / "running.json"
    part.write_text("{}")
    processes = multiprocessing.get_context("forkserver" if step.fork else "spawn")
    if step.fork:
        processes.set_forkserver_preload(["bench.gpu.steps"])  # torch is loaded once, and no CUDA in the server
    process = processes.Process(target=_child, args=(step, out, part, limit, smoke))
    began = time.monotonic()
    process.start()
    process.join(limit)
    outcome: dict[str, Any] = {"title": step.title}
    if process.is_alive():
        # it leads a group: what it started goes with it
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.kill()  # it may not have come to lead one
        process.join()
        outcome |= {"state": "cut off", "reason": f"at {limit:.0f} s"}
    findings = json.loads(part.read_text())
    part.unlink()
    ending = findings.pop("ending", {"state": "failed", "reason": f"the process ended with {process.exitcode}"})
    # a step may do what it can and leave out the rest
    parts = ((name, finding) for name, finding in findings.items() if isinstance(finding, dict))
    left_out = [f"{name}: {finding['not available']}" for name, finding in parts if "not available" in finding]
    if left_out:
        ending.setdefault("reason", "; ".join(left_out))
    return {**ending, **outcome, "seconds": round(time.monotonic() - began, 1), "findings": findings}


def _child(step: Step, out: Path, part: Path, limit: float, smoke: bool) -> None:
    os.setsid()
    if smoke:
        # before anything imports Triton: its kernels then run in the interpreter
        os.environ["TRITON_INTERPRET"] = "1"
    with open(out / "suite.log", "a") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    print(f"\n=== {step.name}", flush=True)
    context = Context(out, part, limit, smoke)
    torch.set_num_threads(1)
    kernels = {} if smoke or not find_spec("triton") else carried.counting()
    try:
        step.run(context)
    except Unavailable as reason:
        context.record("ending", {"state": "not available", "reason": str(reason)})
    except Exception as error:
        context.record("ending", {"state": "failed", "reason": last_line(error)})
        raise  # the whole traceback is in the log
    else:
        context.record("ending", {"state": "done"})
    finally:
        if any(kernels.values()):
            context.record("kernels", kernels)


def _write(path: Path, suite: dict[str, Any]) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(suite, indent=1) + "\n")
    partial.replace(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_suite",
        description=__doc__,
        epilog=_EPILOG + "\nsteps:\n" + "\n".join(f"  {step.name:28} {step.title}" for step in STEPS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [step.name for step in STEPS]
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the results go; new or empty")
    parser.add_argument(
        "--minutes", type=float, help=f"for everything ({_MINUTES:.0f}; with --rerun {_RERUN_MINUTES:.0f})"
    )
    parser.add_argument("--rerun", type=Path, metavar="FILE", help="leave out what is done in this suite.json")
    parser.add_argument(
        "--only", nargs="+", default=[], choices=names, metavar="STEP", help="after build, these alone"
    )
    parser.add_argument("--smoke", action="store_true", help="rehearse on the processor with tiny sizes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
