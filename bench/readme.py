"""The README's figures: which results there are, and the text made of them."""

from __future__ import annotations

import os
from pathlib import Path

from bench import table
from bench.case import DEVICES
from bench.machine import ROOT
from bench.record import Run, load
from bench.registry import OPS

RESULTS = ROOT / "bench" / "results"
GPU_BLOCK = "bench:gpu"


def newest(folder: Path = RESULTS) -> dict[tuple[str, str], Path]:
    """The latest complete result of every op and kind of device that has one: ``(op, kind) -> path``."""
    runs = {path: load(path) for path in folder.glob("*/*.json")}
    by_date = sorted(runs, key=lambda path: runs[path].environment["date"])
    found = {(runs[path].op, runs[path].device): path for path in by_date if runs[path].complete}
    order = ((op, device) for op in OPS for device in DEVICES)
    return {key: found[key] for key in order if key in found}


def name(run: Run) -> str:
    """How charts and blocks of a result are called."""
    return run.op if run.device == "cpu" else f"{run.op}_{run.device}"


def gpu_status(found: dict[tuple[str, str], Path] | None = None) -> str:
    """What can be said about GPUs, by what was measured on one."""
    found = newest() if found is None else found
    measured = {op: path for (op, device), path in found.items() if device == "cuda"}
    if not measured:
        return (
            "**GPU figures are not measured yet**: `bench/results/` holds no result from one. "
            "`python -m bench.gpu_suite --out DIR` is the one command that measures them."
        )
    lines = []
    for op, path in measured.items():
        cases = [case for case in load(path).cases if case.speedup is not None]
        ratios = sorted(case.speedup for case in cases if case.speedup is not None)
        told = f"{table.times(ratios[0])} to {table.times(ratios[-1])} the best peer" if ratios else "no ratio"
        lines.append(f"- `{op}`: {told}; {table.conditions(load(path))}")
    missing = [op for op in OPS if op not in measured]
    if missing:
        lines.append(f"- not measured on a GPU yet: {', '.join(f'`{op}`' for op in missing)}")
    return "\n".join(lines)


def write(readme: Path, results: dict[str, Path]) -> None:
    """Replace the table of each result, by block name, and what is said about GPUs.

    Raises:
        ValueError: if a block has no place in the file.
    """
    for block, path in results.items():
        source = os.path.relpath(path.resolve(), readme.resolve().parent)
        write_between_markers(readme, block, table.markdown(load(path), source))
    if f"<!-- {GPU_BLOCK}:begin -->" in readme.read_text():
        write_between_markers(readme, GPU_BLOCK, gpu_status())


def write_between_markers(path: Path, block: str, text: str) -> None:
    """Replace what stands between ``<!-- block:begin -->`` and ``<!-- block:end -->``.

    Raises:
        ValueError: if the file does not have each marker once, in this order.
    """
    begin, end = f"<!-- {block}:begin -->", f"<!-- {block}:end -->"
    content = path.read_text()
    if content.count(begin) != 1 or content.count(end) != 1 or content.index(begin) > content.index(end):
        raise ValueError(f"{path}: expected {begin} and then {end}, once each")
    head, rest = content.split(begin)
    path.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}")
