"""The machine: threads set alike for all, the stamp of every result."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench.case import Implementation
from bench.ceiling import extension
from bench.device import Device

ROOT = Path(__file__).resolve().parent.parent
# the files that decide what runs; a change elsewhere does not make a result unreproducible
_CODE = ("vqkernels", "csrc", "bench", "setup.py", "pyproject.toml", ":!bench/results", ":!bench/**.md")
_ALWAYS = ("vqkernels", "numpy", "torch", "triton")
_FLAGS = ("avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve")


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """The same number of threads for torch (vqkernels follows it), faiss, OpenMP and every BLAS."""
    for module in ("faiss", "sklearn", "superkmeans"):  # a pool can only be limited once it is loaded
        if importlib.util.find_spec(module):
            importlib.import_module(module)
    before = torch.get_num_threads()
    # a GPU machine without the CPU peers may lack it: there only torch has threads
    pools = importlib.import_module("threadpoolctl") if importlib.util.find_spec("threadpoolctl") else None
    with pools.threadpool_limits(limits=count) if pools else nullcontext():
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _pools() -> list[str]:
    if importlib.util.find_spec("threadpoolctl") is None:
        return ["unknown: package threadpoolctl is not installed"]
    found = importlib.import_module("threadpoolctl").threadpool_info()
    pools = {(pool["user_api"], pool["prefix"], pool["num_threads"]) for pool in found}
    return [f"{api} {prefix}: {count}" for api, prefix, count in sorted(pools)]


def environment(
    implementations: Iterable[Implementation], device: Device, *, threads: int, seed: int
) -> dict[str, Any]:
    """Everything a reader needs to judge or repeat a result."""
    kernels = extension()
    modules = {i.module: i.version() for i in implementations if not i.missing(device.kind)}
    return {
        "device": {"kind": device.kind, **device.state()},
        "cpu": _cpu(),
        "threads": threads,
        "thread_pools": _pools(),
        "load_average": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "packages": {name: _version(name) for name in _ALWAYS if importlib.util.find_spec(name)} | modules,
        "build": {} if kernels is None else dict(kernels.build_info()),
        "isa": os.environ.get("VQKERNELS_ISA", "auto"),
        **_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "command": shlex.join(["python", "-m", "bench.run", *sys.argv[1:]]),
    }


def _version(package: str) -> str:
    return str(importlib.import_module(package).__version__)


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


def slug(stamp: dict[str, Any]) -> str:
    """The measured device's name as part of a file name."""
    if "name" in stamp["device"]:
        return "-".join(re.findall(r"[a-z0-9]+", stamp["device"]["name"].lower()))
    cpu = stamp["cpu"]
    name = re.sub(r"\((r|tm|c)\)|\bcpu\b|\bprocessor\b|@.*", " ", cpu["model"].lower())
    return "-".join([*re.findall(r"[a-z0-9]+", name), f"{cpu['cores']}c"])
