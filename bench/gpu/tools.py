"""Steps that run another program: build, tests, compute-sanitizer, profiler. What they print is kept and read."""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bench.gpu import carried
from bench.gpu.context import Context, Unavailable
from bench.gpu.workload import WORKLOADS
from bench.machine import ROOT

_SPARE = 5.0  # seconds between the end of a program that takes too long and that of its step
_NO_TESTS = 5  # exit code of pytest when it has selected none


class Ended(NamedTuple):
    """What became of a program."""

    code: int | None  # None: it took too long
    output: str  # as far as it came


def run(context: Context, command: Sequence[str], seconds: float, **environment: str) -> Ended:
    """Run a program in the checkout for some seconds; its output goes into the log of the suite, too."""
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        options: dict[str, Any] = {"cwd": ROOT, "stdout": log, "stderr": subprocess.STDOUT}
        options["env"] = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
        print(f"$ {shlex.join(command)}", flush=True)
        try:
            code = subprocess.run(command, timeout=max(1.0, seconds), check=False, **options).returncode
        except subprocess.TimeoutExpired:
            code = None
        log.seek(0)
        output = log.read()
    print(output, flush=True)
    return Ended(code, output)


def build(context: Context) -> None:
    """Make the machine what the other steps need; where a part fails, they do without."""
    wheels = [str(path) for path in sorted(carried.FOLDER.glob("*.whl"))]
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--upgrade"]
    commands = {
        "peers": [*install, "--target", str(carried.PEERS), *wheels] if wheels else [],
        "extension": [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        "what is usable": [sys.executable, "-m", "vqkernels.info"],
    }
    try:
        context.record("compiled kernels", carried.unpack(carried.KERNELS))
    except Unavailable as reason:
        context.record("compiled kernels", {"not available": str(reason)})
    failed = []
    for name, command in commands.items():
        if context.smoke or not command:
            reason = "a rehearsal changes nothing" if context.smoke else f"no wheels in {carried.FOLDER}"
            context.record(name, {"not available": reason})
            continue
        began = time.monotonic()
        code, output = run(context, command, context.left - _SPARE, VQKERNELS_BUILD="cuda", VQKERNELS_CUDA_ARCHS="90")
        took = round(time.monotonic() - began, 1)
        context.record(name, {"exit code": code, "seconds": took, "output": output.splitlines()[-20:]})
        failed += [f"{name}: {_last(output)}"] if code else []
        failed += [f"{name}: not through in time"] if code is None else []
    if failed:
        raise RuntimeError("; ".join(failed))


def _last(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


# parameter sets of every test and backend: each brings variants of kernels, which are compiled there
SAMPLE = 3
TESTS = ("-m", "gpu and not slow", "--sample", str(SAMPLE), "tests/ops", "tests/kmeans")


def tests(context: Context) -> None:
    """A sample of everything marked gpu that covers every test of every op on both backends."""
    arguments = (
        ["--collect-only", "-m", "gpu", "--sample", "1", "tests/test_bench_gpu.py"] if context.smoke else [*TESTS]
    )
    if not context.smoke and importlib.util.find_spec("xdist"):
        # several processes compile; of their kernels, the device runs one at a time
        arguments += ["-n", str(max(1, len(os.sched_getaffinity(0)) - 2))]
    command = [sys.executable, "-m", "pytest", "-v", "-rfE", "-p", "no:cacheprovider", *arguments]
    code, output = run(context, command, context.left - _SPARE)
    # a test's line tells how far it all is; those of the summary do not
    told = (
        re.search(r"\b(PASSED|FAILED|ERROR|SKIPPED)\b", line)
        for line in output.splitlines()
        if line.rstrip().endswith("%]") or "%] " in line
    )
    counted = Counter(outcome[1].lower() for outcome in told if outcome)
    failed = sorted(set(re.findall(r"(?:FAILED|ERROR) (tests/\S+)", output)))
    context.record("pytest", {"exit code": code, "summary": _last(output), "counted": counted, "failed": failed})
    if code == _NO_TESTS:
        raise Unavailable("no test is marked gpu")
    if code is None:
        raise RuntimeError(f"pytest: not through in time, {len(failed)} failed so far")
    if code:
        raise RuntimeError(f"pytest: {_last(output)}")


SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
# torch's own allocator would hide what lies beyond a tensor, or was written before in the same place
_PLAIN_MEMORY = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def sanitizers(context: Context) -> None:
    """Every kernel once, as it is, and under each tool of compute-sanitizer."""
    backends = context.require_gpu_backend("nearest_code")
    errors = []
    for backend in backends:
        workout = [sys.executable, "-m", "bench.gpu.workout", "--backend", backend]
        # compiles what is then found compiled
        code, output = run(context, workout, context.left - _SPARE)
        context.record(f"{backend} alone", {"exit code": code, "summary": _last(output)})
        if code:
            raise RuntimeError(f"workout of {backend}: {_last(output)}")
        for number, tool in enumerate(SANITIZERS):
            if not shutil.which("compute-sanitizer"):
                context.record(f"{backend} {tool}", {"not available": "compute-sanitizer is not on the PATH"})
                continue
            command = ["compute-sanitizer", "--tool", tool, *workout]
            share = (context.left - _SPARE) / (len(SANITIZERS) - number) / (len(backends) - backends.index(backend))
            code, output = run(context, command, share, **_PLAIN_MEMORY)
            found = sanitizer_summary(output)
            context.record(f"{backend} {tool}", {"exit code": code, **found})
            if found.get("errors"):
                errors.append(f"{backend} {tool}: {found['errors']}")
    if errors:
        raise RuntimeError("; ".join(errors))


def sanitizer_summary(output: str) -> dict[str, Any]:
    """What compute-sanitizer counted, and the first of what it found; the reason if it gave no summary."""
    told = [line.removeprefix("=========").strip() for line in output.splitlines() if line.startswith("=========")]
    summary = next((line for line in reversed(told) if "SUMMARY:" in line), None)
    if summary is None:
        return {"not available": told[-1] if told else "no summary: it was stopped, or did not start"}
    numbers = [int(number) for number in re.findall(r"(\d+) (?:error|hazard)", summary)]
    first = next((line for line in told if line not in ("COMPUTE-SANITIZER", "", summary)), "")
    return {"errors": max(numbers, default=0), "summary": summary, "first": first if any(numbers) else ""}


# asked for by section, so that each device answers with its own counters
_SECTIONS = (
    *("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "SchedulerStats"),
    *("LaunchStats", "Occupancy"),
)
_REFUSED = r"(ERR_NVGPUCTRPERM.*|.*LibraryNotLoaded.*|==ERROR== .*)"


def counters(context: Context) -> None:
    """What limits each kernel: the unit that is busiest, by the profiler's counters."""
    context.require_gpu_backend("nearest_code")
    if not shutil.which("ncu"):
        raise Unavailable("ncu is not on the PATH")
    for number, name in enumerate(WORKLOADS):
        sections = [part for section in _SECTIONS for part in ("--section", section)]
        # the clocks are left as they are; counting begins with the call after the first, see workload.py
        command = ["ncu", "--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none", *sections]
        command += ["--profile-from-start", "off", "--kernel-name", f"regex:^({WORKLOADS[name].kernels})"]
        command += [sys.executable, "-m", "bench.gpu.workload", name]
        code, output = run(context, command, (context.left - _SPARE) / (len(WORKLOADS) - number))
        kernels = [limits(row) for row in profiled(output)]
        if not kernels:
            refused = re.search(_REFUSED, output)
            reason = refused[1].strip() if refused else f"exit code {code}, {_last(output)}"
            context.record(name, {"not available": reason})
            if refused:
                raise Unavailable(reason)
            continue
        context.record(name, {"kernels": kernels})


def profiled(output: str) -> list[dict[str, str]]:
    """The rows of ``ncu --csv --page raw``: name of a column -> value, times in seconds."""
    lines = output.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID",')), len(lines))
    table: list[list[str]] = [*csv.reader(line for line in lines[start:] if line.startswith('"')), [], []]
    header, units, *rows = table
    scale = {"ns": 1e-9, "nsecond": 1e-9, "us": 1e-6, "usecond": 1e-6, "ms": 1e-3, "msecond": 1e-3}
    found = []
    for row in (row for row in rows if row):
        values = dict(zip(header, row, strict=True))
        for name, unit in zip(header, units, strict=True):
            if unit in scale:
                values[name] = str(_number(values[name]) * scale[unit])
        found.append(values)
    return found


def limits(row: Mapping[str, str]) -> dict[str, Any]:
    """How long a kernel took, how busy each unit was (percent), and the busiest."""
    busy: dict[str, float] = {}
    patterns = {
        r"sm__inst_executed_pipe_(\w+)\.\w+\.pct_of_peak_sustained_\w+": "pipe {}",
        r"sm__pipe_(\w+)_cycles_active\.\w+\.pct_of_peak_sustained_\w+": "pipe {}",
        r"(sm|l1tex|lts|dram|gpu__dram)__throughput\.avg\.pct_of_peak_sustained_elapsed": "{}",
        r"smsp?__(inst_issued|issue_active)\.\w+\.pct_of_peak_sustained_active": "issue",
    }
    for name, value in row.items():
        for pattern, label in patterns.items():
            if (match := re.fullmatch(pattern, name)) and value:
                unit = {"lts": "L2", "l1tex": "L1", "dram": "DRAM", "sm": "multiprocessor"}.get(match[1], match[1])
                busy[label.format(unit)] = max(busy.get(label.format(unit), 0.0), _number(value))
    # the multiprocessor as a whole is as busy as the busiest of its parts, which has a name
    parts = {unit: share for unit, share in busy.items() if unit != "multiprocessor"}
    return {
        "kernel": row["Kernel Name"].partition("(")[0],
        "seconds": _number(row.get("gpu__time_duration.sum", "")),
        "registers": _number(row.get("launch__registers_per_thread", "")),
        "occupancy": _number(row.get("sm__warps_active.avg.pct_of_peak_sustained_active", "")),
        "busy": dict(sorted(busy.items(), key=lambda item: -item[1])),
        "bound by": max(parts, key=lambda unit: parts[unit], default=""),
    }


def _number(text: str) -> float:
    """A number as it is printed, with separators; NaN for none."""
    return float(text.replace(",", "")) if re.match(r"-?[\d.]", text) else float("nan")
