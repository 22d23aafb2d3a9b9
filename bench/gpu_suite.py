"""Everything there is to measure on a GPU, by one command in bounded time: correctness, ceilings, design, cases."""

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
from pathlib import Path
from typing import Any

import torch

from bench.device import Cuda, Device, Rehearsal
from bench.gpu.context import Context, Unavailable
from bench.gpu.steps import STEPS, Step
from bench.machine import environment
from bench.run import last_line

SCHEMA = 1
_LEAST = 10.0  # seconds a step is worth beginning with

_EPILOG = """\
In DIR: suite.json (environment, and of each step its state, findings and reason), suite.log (all output), and one
result of bench.run per op, for bench.plot and bench.compare. suite.json is rewritten after every step, and a step's
findings so far are kept when it is cut off. A later run into the same DIR leaves out the steps that are done.
"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    deadline = time.monotonic() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        device: Device = Rehearsal(threads=1) if args.smoke else Cuda()
    except ValueError as error:
        print(f"{error} (--smoke rehearses on the processor)", file=sys.stderr)
        return 2
    stamp = environment([], device, threads=1, seed=0)
    del device  # the steps are processes of their own and want the memory
    suite = _resumed(args.out / "suite.json", stamp, smoke=args.smoke)
    for step in STEPS:
        if step.name in args.skip or (args.only and step.name not in args.only):
            continue
        if suite["steps"].get(step.name, {}).get("state") == "done" and step.name not in args.only:
            continue
        limit = min(step.seconds, deadline - time.monotonic())
        outcome = run_step(step, args.out, limit, args.smoke) if limit >= _LEAST else {"state": "no time left"}
        suite["steps"][step.name] = outcome
        _write(args.out / "suite.json", suite)
        print(f"{step.name:24} {outcome['state']:14} {outcome.get('reason', '')}", flush=True)
    return 1 if any(outcome["state"] == "failed" for outcome in suite["steps"].values()) else 0


def _resumed(path: Path, stamp: dict[str, Any], *, smoke: bool) -> dict[str, Any]:
    """What an earlier run of the same code left here, or a beginning."""
    if path.exists():
        suite: dict[str, Any] = json.loads(path.read_text())
        same = all(suite["environment"][key] == stamp[key] for key in ("commit", "dirty"))
        if same and (suite["schema"], suite["smoke"]) == (SCHEMA, smoke):
            return suite
        # another commit's figures do not belong beside ours
        path.replace(path.with_name(f"suite-{suite['environment']['commit']}.json"))
    return {"schema": SCHEMA, "smoke": smoke, "environment": stamp, "steps": {}}


def run_step(step: Step, out: Path, limit: float, smoke: bool) -> dict[str, Any]:
    """Run a step in a process of its own: it may hang, crash or spoil the device for whoever shares its process."""
    part = out / "running.json"
    part.write_text("{}")
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(["bench.gpu.steps"])  # torch is loaded once, and no CUDA in the server
    process = fork.Process(target=_child, args=(step, out, part, limit, smoke))
    began = time.monotonic()
    process.start()
    process.join(limit)
    outcome: dict[str, Any] = {"title": step.title}
    if process.is_alive():
        # it leads a group: what it started goes with it
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
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
    try:
        step.run(context)
    except Unavailable as reason:
        context.record("ending", {"state": "not available", "reason": str(reason)})
    except Exception as error:
        context.record("ending", {"state": "failed", "reason": last_line(error)})
        raise  # the whole traceback is in the log
    else:
        context.record("ending", {"state": "done"})


def _write(path: Path, suite: dict[str, Any]) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(suite, indent=1) + "\n")
    partial.replace(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_suite",
        description=__doc__,
        epilog=_EPILOG + "\nsteps:\n" + "\n".join(f"  {step.name:24} {step.title}" for step in STEPS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [step.name for step in STEPS]
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the results go")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything (default %(default)s)")
    parser.add_argument("--only", nargs="+", default=[], choices=names, metavar="STEP", help="these, even if done")
    parser.add_argument("--skip", nargs="+", default=[], choices=names, metavar="STEP", help="all but these")
    parser.add_argument("--smoke", action="store_true", help="rehearse on the processor with tiny sizes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
