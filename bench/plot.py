"""Draw a result and write it into the README; whatever is shown comes from the JSON file and nothing else."""

from __future__ import annotations

import argparse
import math
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import readme, table
from bench.ours import OURS
from bench.record import CaseRecord, Run, load

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
_LEGEND = {
    "cpu": "log scale, right of the line is slower; blue: fastest with right answers, orange: wrong answers",
    "cuda": "log scale, right of the line is slower; blue: fastest peer with right answers, orange: wrong answers, "
    "pale blue: our other backends",
}
_TITLE = 0.6  # inches above a panel
_INK, _PALE, _PAPER = "#24292f", "#d0d7de", "#ffffff"
# blues and orange of Okabe and Ito, apart for every kind of colour vision; lightness tells the rest
_PEER, _BEST, _WRONG, _OURS = "#9aa5b1", "#0072b2", "#e69f00", "#56b4e9"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.plot",
        description=__doc__,
        epilog="Where a file has the lines <!-- bench:OP:begin --> and <!-- bench:OP:end --> (OP_cuda for results "
        "from GPUs), what is between them is replaced by the tables, one for each processor; between "
        "<!-- bench:summary:begin --> and <!-- bench:gpu:begin --> and their ends stands what bench/results/ tells "
        "of all processors and of GPUs.",
    )
    parser.add_argument("json", type=Path, nargs="*", help="results of bench.run (default: the newest complete ones)")
    parser.add_argument(
        "--out",
        type=Path,
        default=readme.CHARTS,
        help="folder of the charts (default: assets/ of the repository)",
    )
    parser.add_argument(
        "--readme",
        type=Path,
        nargs="*",
        metavar="FILE",
        help="also write the tables into these files (without one: README.md and docs/benchmarks.md)",
    )
    parser.add_argument(
        "--case",
        action="append",
        default=[],
        metavar="SUBSTRING",
        help="only these cases; may be given again",
    )
    args = parser.parse_args(argv)
    try:
        drawn = []
        for path in args.json or readme.newest().values():
            run = load(path)
            run.cases = [c for c in run.cases if not args.case or any(part in c.name for part in args.case)]
            if not run.cases:
                raise ValueError(f"{path}: no case to draw")
            drawn.append(path)
            for chart in save_chart(run, args.out):
                print(os.path.relpath(chart), file=sys.stderr)
        if args.readme is not None:
            documents = args.readme or readme.DOCUMENTS
            readme.write(documents, drawn, args.out)
            for document in documents:
                print(os.path.relpath(document), file=sys.stderr)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return 0


def save_chart(run: Run, folder: Path) -> list[Path]:
    """Write the chart as SVG and PNG; the same result gives the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{readme.chart_name(run)}.{kind}" for kind in ("svg", "png")]
    style: dict[Any, Any] = {
        "svg.hashsalt": "vqkernels",
        "svg.fonttype": "none",
        "font.family": ["DejaVu Sans", "sans-serif"],
        "text.color": _INK,
    }
    with matplotlib.rc_context(style):
        figure = _draw(run)
        for path, metadata in zip(paths, ({"Date": None}, {"Software": None}), strict=True):
            figure.savefig(path, dpi=150, facecolor=_PAPER, metadata=metadata)
    return paths


def _draw(run: Run) -> Figure:
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(m.implementation for case in run.cases for m in case.measurements))
    names.remove(OURS)
    columns = min(_COLUMNS, len(run.cases))
    lines = math.ceil(len(run.cases) / columns)
    # inches: a strip per bar, room for a title per panel, a head and a foot
    panel, head, foot = 0.16 * max(3, len(names)) + _TITLE, 0.45 + _TITLE, 0.8
    height = lines * panel - _TITLE + head + foot
    figure = Figure(figsize=(10, height), layout=None)
    grid: Any = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    figure.subplots_adjust(
        left=0.18,
        right=0.965,
        top=1 - head / height,
        bottom=foot / height,
        wspace=0.09,
        hspace=_TITLE / (panel - _TITLE),
    )
    grid[0, 0].set_xscale("log")
    grid[0, 0].set_xlim(_limits(run))
    grid[0, 0].set_ylim(len(names) - 0.4, -0.6)
    for axes, case in zip(grid.flat, run.cases, strict=False):
        _panel(axes, case, names)
    for axes in grid.flat[len(run.cases) :]:
        axes.set_visible(False)
    # panels without one below them carry the scale
    for column in range(columns):
        grid[(len(run.cases) - 1 - column) // columns, column].tick_params(labelbottom=True)
    where = "" if run.device == "cpu" else f" on {run.environment['device'].get('name', 'cuda')}"
    figure.text(0.02, 1 - 0.3 / height, f"{run.op}{where}: time relative to vqkernels", fontsize=13, weight="bold")
    figure.text(
        0.02,
        1 - 0.52 / height,
        _LEGEND[run.device],
        fontsize=9,
    )
    figure.text(0.02, 0.12 / height, textwrap.fill(table.conditions(run), 150), fontsize=7.5, va="bottom")
    return figure


def _panel(axes: Axes, case: CaseRecord, names: Sequence[str]) -> None:
    others = {m.implementation: m for m in case.measurements}
    for y, name in enumerate(names):
        ratio = case.ratio(others[name]) if name in others else None
        if ratio is None:
            axes.text(1.06, y, "not run", va="center", fontsize=7, color=_PEER)
            continue
        other = others[name]
        best = case.best_peer is other
        color = _BEST if best else _OURS if other.ours else _PEER if other.verdict.passed else _WRONG
        axes.barh(y, ratio - 1, left=1, height=0.72, color=color)
        inside = ratio > axes.get_xlim()[1] / 4
        axes.text(
            ratio / 1.06 if inside else max(ratio, 1) * 1.06,
            y,
            table.times(ratio),
            va="center",
            ha="right" if inside else "left",
            fontsize=7.5,
            color=_PAPER if inside and best else _INK,
            weight="bold" if best else "normal",
        )
    axes.axvline(1, color=_INK, linewidth=1)
    letters = " ".join(f"{letter}={size:,}" for letter, size in case.sizes.items() if (letter, size) != ("G", 1))
    time = table.duration(case.ours.timing.median) if case.ours.timing else "not exact"
    axes.set_title(f"{case.name}: {time}\n", fontsize=9, loc="left", weight="bold", color=_INK, pad=2)
    axes.text(0, 1.03, letters, transform=axes.transAxes, fontsize=7.5, color=_INK)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(axis="both", which="both", length=0, labelsize=8, colors=_INK)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.grid(axis="x", color=_PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def _limits(run: Run) -> tuple[float, float]:
    ratios = [r for case in run.cases for m in case.measurements if (r := case.ratio(m)) is not None]
    return min(0.9, 0.8 * min(ratios, default=1.0)), max(10.0, 1.3 * max(ratios, default=1.0))


if __name__ == "__main__":
    sys.exit(main())
