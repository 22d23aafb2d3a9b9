"""The machine: threads set alike for all, its measured ceilings, the stamp of every result."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import vqkernels
from bench.case import Implementation

ROOT = Path(__file__).resolve().parent.parent
# the files that decide what runs; a change elsewhere does not make a result unreproducible
_CODE = ("vqkernels", "csrc", "bench", "setup.py", "pyproject.toml", ":!bench/results", ":!bench/**.md")
_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")


@dataclass(frozen=True)
class Ceiling:
    """What the machine can do at most, measured in the run it is compared with."""

    flops: float  # per second, all threads
    flops_source: str
    bytes: float  # per second, read and written by a copy


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """The same number of threads for torch (vqkernels follows it), faiss, OpenMP and every BLAS."""
    from threadpoolctl import threadpool_limits

    for module in ("faiss", "sklearn"):  # a pool can only be limited once it is loaded
        if importlib.util.find_spec(module):
            importlib.import_module(module)
    before = torch.get_num_threads()
    with threadpool_limits(limits=count):
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def measure_ceiling(threads: int, seconds: float) -> Ceiling:
    """Fused multiply-add rate and copy bandwidth of this moment."""
    extension = _extension()
    if extension is not None:
        flops, source = extension.fma_peak(threads, seconds), "FMA"
    else:
        flops, source = _sgemm_rate(seconds), "sgemm, a proxy for FMA"
    source_, target = (torch.zeros(1 << (26 if seconds >= 0.05 else 20)) for _ in range(2))
    copied = 2 * source_.numel() * source_.element_size()
    return Ceiling(flops, source, copied * _rate(lambda: target.copy_(source_), seconds))


def _sgemm_rate(seconds: float) -> float:
    a, b, c = (torch.ones(1024, 1024) for _ in range(3))
    return 2 * 1024**3 * _rate(lambda: torch.mm(a, b, out=c), seconds)


def _rate(call: Any, seconds: float) -> float:
    call()
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds or not count:
        call()
        count += 1
    return count / elapsed


def _extension() -> Any:
    """The compiled kernels, asked for what the public functions do not tell: peak and build."""
    return importlib.import_module("vqkernels._C") if importlib.util.find_spec("vqkernels._C") else None


def environment(op: str, implementations: Iterable[Implementation], *, threads: int, seed: int) -> dict[str, Any]:
    """Everything a reader needs to judge or repeat a result."""
    from threadpoolctl import threadpool_info

    extension = _extension()
    modules = {i.module: i.version() for i in implementations if not i.missing()}
    pools = {(pool["user_api"], pool["prefix"], pool["num_threads"]) for pool in threadpool_info()}
    return {
        "cpu": _cpu(),
        "threads": threads,
        "thread_pools": [f"{api} {prefix}: {count}" for api, prefix, count in sorted(pools)],
        "load_average": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {"numpy": importlib.import_module("numpy").__version__, **modules},
        "backend": next(c.backend for c in vqkernels.explain(op) if c.selected),
        "build": {} if extension is None else dict(extension.build_info()),
        "isa": os.environ.get("VQKERNELS_ISA", "auto"),
        **_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "command": shlex.join(["python", "-m", "bench.run", *sys.argv[1:]]),
    }


def _cpu() -> dict[str, Any]:
    facts: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        pairs = (line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        facts = {key.strip(): value.strip() for key, value in pairs}
    present = set((facts.get("flags") or facts.get("Features") or "").split())
    return {
        "model": facts.get("model name") or platform.processor() or platform.machine(),
        "family": " ".join(facts.get(key, "?") for key in ("vendor_id", "cpu family", "model", "stepping")),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": [flag for flag in _FLAGS if flag in present],
    }


def _commit() -> dict[str, Any]:
    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short=10", "HEAD")
    return {"commit": commit or "unknown", "dirty": bool(git("status", "--porcelain", "--", *_CODE))}


def slug(cpu: dict[str, Any]) -> str:
    """A processor's name as part of a file name."""
    name = re.sub(r"\((r|tm|c)\)|\bcpu\b|\bprocessor\b|@.*", " ", cpu["model"].lower())
    return "-".join([*re.findall(r"[a-z0-9]+", name), f"{cpu['cores']}c"])
