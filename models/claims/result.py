"""The result of a claim as JSON: everything that the table, the page and the README show."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from models.claims.claim import Chart, Claim, Metric, Scale, Trial, judge, size_of, unequal

Values = Mapping[str, Mapping[str, Sequence[float]]]  # variant, metric -> one number a seed


def result_of(
    claim: Claim,
    scale: Scale,
    seeds: Sequence[int],
    values: Values,
    trainings: Mapping[str, Mapping[str, float]],
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """What was measured, and the verdict.

    Args:
        claim: what was claimed.
        scale: at which it was tried.
        seeds: of the runs.
        values: the measured numbers.
        trainings: by seed, the minutes of each training, those that other claims share too.
        environment: what they were measured with.
    """
    trial = claim.trial(scale)
    assert trial is not None
    findings = [judge(check, values, len(seeds)) for check in trial.checks]
    sizes = [size_of(variant.run) for variant in trial.variants]
    return {
        "claim": claim.name,
        "title": claim.title,
        "system": claim.system,
        "place": claim.place,
        "says": claim.says,
        "published": claim.published,
        "scale": scale,
        "form": trial.form,
        "unequal": unequal(sizes),
        "remark": trial.remark,
        "seeds": list(seeds),
        "metrics": [dataclasses.asdict(metric) for metric in trial.metrics],
        "variants": [
            {
                "name": variant.name,
                "recipe": variant.run.config.recipe,
                **dataclasses.asdict(size),
                "values": {metric: list(numbers) for metric, numbers in values[variant.name].items()},
                "published": dict(variant.published),
            }
            for variant, size in zip(trial.variants, sizes, strict=True)
        ],
        "checks": [dataclasses.asdict(finding) for finding in findings],
        "holds": all(finding.holds for finding in findings),
        "chart": _chart(trial, trial.chart, values),
        "trainings": {seed: dict(minutes) for seed, minutes in trainings.items()},
        "environment": dict(environment),
    }


def _chart(trial: Trial, chart: Chart, values: Values) -> dict[str, Any]:
    if chart.lines:
        lines = [
            {
                "name": line.name,
                "x": [x for x, _, _ in line.points],
                "y": [list(values[variant][metric]) for _, variant, metric in line.points],
            }
            for line in chart.lines
        ]
        return {"x": chart.x, "y": chart.y, "log": chart.log, "lines": lines}
    metric: Metric = next(metric for metric in trial.metrics if metric.key == chart.y)
    rows = [{"name": variant.name, "values": list(values[variant.name][chart.y])} for variant in trial.variants]
    return {"metric": dataclasses.asdict(metric), "rows": rows}
