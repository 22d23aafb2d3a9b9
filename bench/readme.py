"""The figures of README and documentation: which results there are, and the text made of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from bench import table
from bench.case import DEVICES
from bench.machine import ROOT, slug
from bench.record import CaseRecord, Run, load
from bench.registry import OPS

RESULTS = ROOT / "bench" / "results"
CHARTS = ROOT / "assets"
# what holds figures: a summary, and everything
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
GPU_BLOCK = "bench:gpu"
SUMMARY_BLOCK = "bench:summary"
_UNITS = ("amx_bf16", "avx512f", "avx2", "asimd")


def newest(folder: Path = RESULTS) -> dict[tuple[str, str], Path]:
    """The latest complete result of every op on every processor shown: ``(op, processor) -> path``.

    Shown are all GPUs, and of each maker's processors with vectors of one kind the one measured last.
    """
    runs = {path: load(path) for path in folder.glob("*/*.json")}
    by_date = [path for path in sorted(runs, key=lambda path: runs[path].environment["date"]) if runs[path].complete]
    last = {_kind(runs[path]): _identity(runs[path]) for path in by_date}
    # a processor that learned a new instruction set is the same one
    latest = {(runs[path].op, _identity(runs[path])): path for path in by_date}
    shown = [path for path in latest.values() if last[_kind(runs[path])] == _identity(runs[path])]
    found = {(runs[path].op, processor(runs[path])): path for path in shown}
    kinds = {name: DEVICES.index(runs[path].device) for (_, name), path in found.items()}
    order = ((op, name) for op in OPS for name in sorted(kinds, key=lambda name: (kinds[name], name)))
    return {key: found[key] for key in order if key in found}


def _identity(run: Run) -> str:
    stamp = run.environment
    return slug(stamp) if run.device != "cpu" else f"{slug(stamp)} {stamp['cpu']['family']}"


def _kind(run: Run) -> str:
    """Whose processor it is and the most it has to multiply with; every GPU is one of its own."""
    if run.device != "cpu":
        return _identity(run)
    cpu = run.environment["cpu"]
    return f"{cpu['family'].split()[0]} {next((flag for flag in _UNITS if flag in cpu['flags']), '')}"


def processor(run: Run) -> str:
    """Name of what was measured, as part of a file name: the processor and the instruction set in use, or the GPU."""
    return slug(run.environment) if run.device != "cpu" else f"{slug(run.environment)}-{table.isa(run)}"


def block(run: Run) -> str:
    """Where in a document a result belongs: the results of all processors together, those of GPUs apart."""
    return f"bench:{run.op}" if run.device == "cpu" else f"bench:{run.op}_{run.device}"


def chart_name(run: Run) -> str:
    return f"bench_{run.op}_{processor(run)}"


def gpu_status(found: Mapping[tuple[str, str], Path] | None = None) -> str:
    """What can be said about GPUs, by what was measured on one."""
    runs = [load(path) for path in (newest() if found is None else found).values()]
    measured = [run for run in runs if run.device == "cuda"]
    if not measured:
        return (
            "**GPU figures are not measured yet**: `bench/results/` holds no result from one. "
            "`python -m bench.gpu_suite --out DIR` is the one command that measures them."
        )
    lines = []
    for run in measured:
        ratios = sorted(_speedups(run))
        told = f"{table.times(ratios[0])} to {table.times(ratios[-1])} the best peer" if ratios else "no ratio"
        lines.append(f"- `{run.op}`: {told}; {table.conditions(run)}")
    missing = [op for op in OPS if op not in {run.op for run in measured}]
    if missing:
        lines.append(f"- not measured on a GPU yet: {', '.join(f'`{op}`' for op in missing)}")
    return "\n".join(lines)


def summary(found: Mapping[tuple[str, str], Path]) -> str:
    """A table with the processors side by side: by how much the best peer with right answers is slower."""
    runs = [run for run in map(load, found.values()) if _speedups(run)]
    # a processor whose results are of several instruction sets has a column for each
    of: dict[str, dict[str, Run]] = {}
    for run in runs:
        of.setdefault(processor(run), {})[run.op] = run
    header = ["op"]
    for own in of.values():
        header += [table.machine(next(iter(own.values()))), f"vs {table.USUAL}"]
    lines = [f"| {' | '.join(header)} |", "|---|" + "--:|" * (len(header) - 1)]
    for op in dict.fromkeys(run.op for run in runs):
        cells = (cell for own in of.values() for cell in (_cells(own[op]) if op in own else ("not measured", "")))
        lines.append(f"| {' | '.join([f'`{op}`', *cells])} |")
    return "\n".join([*lines, "", "; ".join(_summary_foot(list(own.values())) for own in of.values()) + "."])


def _cells(run: Run) -> tuple[str, str]:
    ratios = _speedups(run)
    named = ((case, m) for case in _typical(run) for m in case.measurements if m.implementation == table.USUAL)
    usual = [ratio for case, m in named if (ratio := case.ratio(m)) is not None]
    least, middle, most = (table.times(f(ratios)) for f in (min, median, max))
    return f"{least}, **{middle}**, {most} ({len(ratios)} cases)", _span(usual)


def _span(ratios: Sequence[float]) -> str:
    return f"{table.times(min(ratios))} to {table.times(max(ratios))}" if ratios else ""


def _summary_foot(runs: Sequence[Run]) -> str:
    stamps = {(run.environment["commit"], run.environment["date"][:10]): None for run in runs}
    measured = ", ".join(f"{commit} ({date})" for commit, date in stamps)
    return f"{table.machine(runs[0])}: measured at {measured}"


def _speedups(run: Run) -> list[float]:
    return [case.speedup for case in _typical(run) if case.speedup is not None]


def _typical(run: Run) -> list[CaseRecord]:
    """The cases but for those that are there to hurt."""
    adverse = {case.name for case in OPS[run.op] if case.adverse}
    return [case for case in run.cases if case.name not in adverse]


def blocks(results: Sequence[Path], charts: Path, folder: Path) -> dict[str, str]:
    """What stands in the blocks of a document in ``folder``: the tables of results, the summary, and of GPUs."""
    told: dict[str, list[str]] = {}
    for path in results:
        run = load(path)
        told.setdefault(block(run), []).append(_table(run, path, charts, folder.resolve()))
    found = newest()
    return {name: "\n\n".join(tables) for name, tables in told.items()} | {
        SUMMARY_BLOCK: summary(found),
        GPU_BLOCK: gpu_status(found),
    }


def write(documents: Sequence[Path], results: Sequence[Path], charts: Path = CHARTS) -> None:
    """Replace the blocks that documents have.

    Raises:
        ValueError: if a result has no place in any of them.
    """
    texts = {path: path.read_text() for path in documents}
    for name in {block(load(path)) for path in results}:
        if not any(_markers(name)[0] in text for text in texts.values()):
            raise ValueError(f"{', '.join(map(str, documents))}: expected {_markers(name)[0]} in one of them")
    for document, text in texts.items():
        for name, told in blocks(results, charts, document.parent).items():
            if _markers(name)[0] in text:
                write_between_markers(document, name, told)


def _table(run: Run, path: Path, charts: Path, folder: Path) -> str:
    source, chart = (os.path.relpath(p.resolve(), folder) for p in (path, charts / f"{chart_name(run)}.svg"))
    return f"**{table.machine(run)}**\n\n{table.markdown(run, source)} Every implementation: [chart]({chart})."


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def between_markers(text: str, name: str) -> str:
    """What stands in a block of a document."""
    begin, end = _markers(name)
    return text.partition(begin)[2].partition(end)[0].strip()


def write_between_markers(path: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- name:begin -->`` and ``<!-- name:end -->``.

    Raises:
        ValueError: if the file does not have each marker once, in this order.
    """
    begin, end = _markers(name)
    content = path.read_text()
    if content.count(begin) != 1 or content.count(end) != 1 or content.index(begin) > content.index(end):
        raise ValueError(f"{path}: expected {begin} and then {end}, once each")
    head, rest = content.split(begin)
    path.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}")
