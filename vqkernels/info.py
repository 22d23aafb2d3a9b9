"""``python -m vqkernels.info``: what is built, what can run, and why the rest cannot."""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
from typing import Any

import torch

import vqkernels
from vqkernels._core.backend import BACKENDS, explain, registered_backends, registered_ops
from vqkernels._core.extension import build_info, load_error


def collect() -> dict[str, Any]:
    """Everything the command prints, as plain data."""
    return {
        "version": vqkernels.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "triton": importlib.util.find_spec("triton") is not None,
        "extension": build_info() or {"missing": load_error},
        "threads": torch.get_num_threads(),
        "devices": _devices(),
        "ops": {op: {choice.backend: choice.state for choice in explain(op)} for op in registered_ops()},
    }


def _devices() -> list[str]:
    names = [f"cpu: {platform.machine()}"]
    if torch.cuda.is_available():
        names += [f"cuda:{i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return names


def backend_table() -> str:
    """The op x backend matrix as a markdown table, generated from the registry."""
    header = ["op", *BACKENDS]
    rows = [
        [f"`{op}`", *("yes" if backend in registered_backends(op) else "" for backend in BACKENDS)]
        for op in registered_ops()
    ]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m vqkernels.info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument("--table", action="store_true", help="only the op x backend table, as markdown")
    options = parser.parse_args(argv)
    if options.table:
        print(backend_table())
        return
    info = collect()
    if options.json:
        json.dump(info, sys.stdout, indent=2)
        print()
        return
    extension = info["extension"]
    print(f"vqkernels {info['version']}, torch {info['torch']}, Python {info['python']}")
    if "missing" in extension:
        print(f"compiled kernels: none ({extension['missing']})")
    else:
        cuda = "with CUDA" if extension["cuda"] else "CPU only"
        print(f"compiled kernels: {cuda}, {extension['isa']}, compiler {extension['compiler']}")
    whose = f" {info['extension']['threads']}" if "threads" in info["extension"] else ""
    print(f"threads: {info['threads']}{whose}   triton: {'importable' if info['triton'] else 'not installed'}")
    print("devices: " + ", ".join(info["devices"]))
    print()
    for op, backends in info["ops"].items():
        print(f"{op:14} " + "   ".join(f"{name}: {state}" for name, state in backends.items()))


if __name__ == "__main__":
    main()
