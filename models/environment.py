"""What a measurement was made with."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

import vqkernels
from models.errors import UserError

OPS = ("nearest_code", "gather_codes", "code_stats", "ema_update_")


def environment() -> dict[str, str]:
    """Machine, versions, backend of every op and source revision, as readable lines."""
    return {
        "Processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "Threads": str(torch.get_num_threads()),
        "System": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "PyTorch": torch.__version__,
        "vqkernels": f"{vqkernels.__version__}, {_revision()}",
        "Backends": ", ".join(f"{op}: {_backend(op)}" for op in OPS),
    }


def device_of(name: str) -> torch.device:
    """The device of this name, which torch has to be able to use here."""
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: expected one that torch can use here, got {name!r}") from error
    if device.type == "meta":
        raise UserError("device: expected one that holds numbers, got 'meta'")
    return device


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _backend(op: str) -> str:
    return next((choice.backend for choice in vqkernels.explain(op) if choice.selected), "none")


def _revision() -> str:
    """Commit of the checkout, marked if files differ from it."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=10"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
    return f"commit {described.stdout.strip()}"
