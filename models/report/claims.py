"""The papers' claims, from the JSON of their results: one page, and the table of models/README.md."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from models.report.blocks import write_block
from models.report.charts import Axis, Series, dot_chart, line_chart

_HERE = Path(__file__).parent
RESULTS = _HERE.parent / "results" / "claims"  # what is committed
README = _HERE.parent / "README.md"
PRIORS = _HERE.parent / "results" / "priors.json"
BLOCK, MINUTES = "claims", "minutes"  # of the README

Result = dict[str, Any]


def number(metric: Result, values: Sequence[float | None]) -> str:
    """Mean over seeds, and what they differ by."""
    found = [value for value in values if value is not None and math.isfinite(value)]
    if len(found) < len(values):
        return "not finite"
    digits = metric["digits"]
    spread = f" ± {stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{fmean(found):.{digits}f}{spread}"


def verdict(result: Result) -> str:
    return "HOLDS" if result["holds"] else "DOES NOT HOLD"


def read_results(folder: Path, order: Sequence[str] = ()) -> list[Result]:
    """The results in a folder, those named in ``order`` first and as it has them."""
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    names = [name for name in order if name in results] + [name for name in results if name not in order]
    return [results[name] for name in names]


def recorded_minutes() -> dict[str, float]:
    """What each training took when it was recorded, by the name of its folder."""
    by_seed = [minutes for result in read_results(RESULTS) for minutes in result["trainings"].values()]
    return {name: took for minutes in by_seed for name, took in minutes.items()}


def chart(result: Result) -> Markup:
    """Means over seeds as lines, or every seed of every variant as a dot."""
    drawn = result["chart"]
    if "rows" in drawn:
        metric = drawn["metric"]
        label = f"{metric['title']} {metric['unit']}".strip()
        rows = [(row["name"], [math.nan if v is None else v for v in row["values"]]) for row in drawn["rows"]]
        return dot_chart(rows, title=result["title"], axis=Axis(label))
    lines = [
        Series(line["name"], slot, line["x"], [_mean(values) for values in line["y"]])
        for slot, line in enumerate(drawn["lines"])
    ]
    x_axis = Axis(drawn["x"], log=drawn["log"], form="{:,.0f}".format if drawn["log"] else "{:,g}".format)
    return line_chart(lines, title=result["title"], x_axis=x_axis, y_axis=Axis(drawn["y"]))


def render(results: Sequence[Result]) -> str:
    """The page as HTML text."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(number=number, verdict=verdict, chart=chart, gap=_gap)
    return environment.get_template("claims.html").render(
        results=results,
        held=sum(result["holds"] for result in results),
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
    )


def write_page(folder: Path, path: Path, order: Sequence[str] = ()) -> None:
    """The page of the results in a folder; a file that would not change is left alone."""
    _write_changed(path, render(read_results(folder, order)))


def readme_table(results: Sequence[Result]) -> str:
    """A line a claim: what was measured, with how many seeds, what is not equal, and the verdict."""
    lines = ["| claim | what the paper says | checks | verdict |", "|---|---|---|---|"]
    for result in results:
        checks = "; ".join(f"{check['says']}: {_gap(check)}" for check in result["checks"])
        scale = "two cores" if result["scale"] == "pocket" else "paper scale"
        seeds = f"{len(result['seeds'])} seeds" if len(result["seeds"]) > 1 else "1 seed"
        unequal = f" Not equal: {result['unequal']}." if result["unequal"] else ""
        told = f"{checks} ({scale}, {seeds}).{unequal}".replace("|", "\\|")
        says = f"{result['says']} ({result['system']}, {result['place']})".replace("|", "\\|")
        lines.append(f"| `{result['claim']}` | {says} | {told} | {verdict(result)} |")
    return "\n".join(lines)


def minutes_told(results: Sequence[Result], priors: Sequence[Result]) -> str:
    """What the trainings of claims and priors take, and ``make demo-full``, by the recorded minutes."""
    every, first = dict[str, float](), dict[str, float]()
    pocket = [result for result in results if result["scale"] == "pocket"]
    timed = [result["trainings"] for result in pocket if "trainings" in result]  # older results say nothing of it
    for seeds in timed:
        for trainings in seeds.values():
            every |= trainings
        first |= seeds.get("0", {})
    missing = f" ({len(timed)} of {len(pocket)})" if len(timed) < len(pocket) else ""
    claims, some, drawn = sum(every.values()), sum(first.values()), sum(entry["minutes"] for entry in priors)
    return (
        "By the recorded minutes (one thread, two trainings at once; claims at the rate of the fastest stretch of "
        "each training, priors at their median rate) "
        f"the {len(every)} trainings of the claims{missing} take {claims:.0f} minutes, those with seed 0 {some:.0f}, "
        f"and the {len(priors)} priors {drawn:.0f}. So `make demo-full`, the priors and the claims with seed 0, two "
        f"trainings at once, comes to {(some + drawn) / 2:.0f} minutes of training, with all seeds to "
        f"{(claims + drawn) / 2:.0f}; codes, measurements, samples and the demo come on top."
    )


def write_minutes(readme: Path = README, results: Path = RESULTS, priors: Path = PRIORS) -> None:
    """Say in the README what trainings take."""
    entries = json.loads(priors.read_text(encoding="utf-8"))
    write_block(readme, MINUTES, minutes_told(read_results(results), entries))


def publish(source: Path, target: Path, order: Sequence[str] = (), readme: Path = README) -> None:
    """Copy results to where they are committed, and write the table of all that are there into the README."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.json")):
        _write_changed(target / path.name, path.read_text(encoding="utf-8"))
    write_block(readme, BLOCK, readme_table(read_results(target, order)))
    write_minutes(readme, target)


def _gap(check: Result) -> str:
    """What was found against what was asked for, both in the unit of the metric."""
    if any(gap is None for gap in check["gaps"]):
        return f"not finite, at least {check['margin']:g} asked"
    return f"{fmean(check['gaps']):.3g}, at least {check['margin']:g} asked"


def _mean(values: Sequence[float | None]) -> float:
    return fmean(math.nan if value is None else value for value in values)


def _write_changed(path: Path, text: str) -> None:
    """Whole or not at all."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
