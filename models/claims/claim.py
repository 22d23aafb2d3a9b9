"""What a claim is, as data, and whether what was measured bears it out.

A claim names runs, one or more seeds of each, and a measurement of every run. Its checks were written down before
anything was measured: each says which number is to be larger than which other one, and by how much at least.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Literal

from models.training.classifier_run import ClassifierRun
from models.training.concept_run import ConceptRun
from models.training.prior_run import PriorRun
from models.training.tokenizer_run import TokenizerRun

Scale = Literal["pocket", "paper"]


@dataclass(frozen=True, kw_only=True)
class Train:
    """The training of a tokenizer."""

    config: TokenizerRun | ConceptRun
    features_of: Train | None = None  # its frozen codes are those of this one


@dataclass(frozen=True, kw_only=True)
class Codes:
    """What a trained tokenizer makes of a data set."""

    tokenizer: Train
    kind: Literal["codes", "latents"] = "codes"
    data: str | None = None  # None: that of the tokenizer
    samples: int | None = None  # see models.extract_codes


@dataclass(frozen=True, kw_only=True)
class Prior:
    """The training of a prior on codes or latents, or of a classifier of codes."""

    config: PriorRun | ClassifierRun
    codes: Codes


Run = Train | Prior


@dataclass(frozen=True, kw_only=True)
class Made:
    """A run that is done, and what it was made from."""

    run: Path
    seed: int
    tokenizer: Path  # of a prior; else the run itself
    codes: Path | None = None  # of a prior: folder with train and val
    data: str = ""  # of a prior: what the codes are of, if it is not the tokenizer's data


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One of the things that are compared."""

    name: str
    run: Run
    published: Mapping[str, float] = field(default_factory=dict)  # by the paper, in the terms of the metrics


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number of the table."""

    key: str
    title: str
    unit: Literal["dB", "%", ""] = ""
    digits: int = 2


Value = tuple[str, str] | float  # variant and metric, or a number


@dataclass(frozen=True, kw_only=True)
class Check:
    """``high`` exceeds ``low``: for every seed, and by ``margin`` on average.

    A margin of 0 allows equality; one below 0 says how much ``high`` may fall short, for every seed.
    """

    says: str
    high: Value
    low: Value
    margin: float


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points of a chart from left to right."""

    name: str
    points: tuple[tuple[float, str, str], ...]  # x, variant, metric


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines over a number; without lines a row of dots for every variant, along the metric ``y``."""

    y: str  # title of the axis, or key of the metric
    x: str = ""
    log: bool = False
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How a claim is tried at one scale."""

    form: str  # what is measured, and what is not equal between the variants
    variants: tuple[Variant, ...]
    measure: Callable[[Made], Mapping[str, float]]
    metrics: tuple[Metric, ...]
    checks: tuple[Check, ...]
    chart: Chart
    seeds: tuple[int, ...] = (0, 1)
    minutes: float  # budget for all seeds: two quiet cores at pocket scale
    remark: str = ""  # what did not come out as hoped, what was tried, the best explanation


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence of a paper that can be put to the test."""

    name: str
    title: str
    system: str
    place: str  # table or figure
    says: str  # the paper's sentence in our words
    published: str = ""  # its numbers, where they are printed
    pocket: Trial
    paper: Trial | None = None

    def trial(self, scale: Scale) -> Trial | None:
        return self.pocket if scale == "pocket" else self.paper


@dataclass(frozen=True)
class Finding:
    """A check, looked at."""

    says: str
    margin: float
    gaps: tuple[float, ...]  # of each seed
    holds: bool


def run_key(run: Run) -> str:
    """A name for all that a run depends on."""
    told = json.dumps(dataclasses.asdict(run), sort_keys=True)
    return hashlib.sha256(f"{type(run).__name__} {told}".encode()).hexdigest()[:12]


def with_seed(run: Run, seed: int) -> Run:
    """The same run, and all that it is made from, with another seed."""
    config = dataclasses.replace(run.config, seed=seed)
    if isinstance(run, Prior):
        tokenizer = with_seed(run.codes.tokenizer, seed)
        return dataclasses.replace(run, config=config, codes=dataclasses.replace(run.codes, tokenizer=tokenizer))
    other = None if run.features_of is None else with_seed(run.features_of, seed)
    return dataclasses.replace(run, config=config, features_of=other)


def judge(check: Check, values: Mapping[str, Mapping[str, Sequence[float]]], seeds: int) -> Finding:
    """Look at a check; ``values`` holds, by variant and metric, one number a seed. What is not finite never holds."""

    def side(value: Value, seed: int) -> float:
        return value if isinstance(value, float | int) else values[value[0]][value[1]][seed]

    gaps = tuple(side(check.high, seed) - side(check.low, seed) for seed in range(seeds))
    finite = all(math.isfinite(gap) for gap in gaps)
    each = all(gap > 0 or 0 >= gap >= check.margin for gap in gaps)
    return Finding(check.says, check.margin, gaps, finite and each and fmean(gaps) >= check.margin)


@dataclass(frozen=True)
class Size:
    """What has to be equal for a comparison to be fair."""

    bits: float | None  # per token; None where tokens are not quantized
    steps: int  # of the tokenizer
    prior_steps: int | None
    data: str


def size_of(run: Run) -> Size:
    """Bits per token, steps and data of a run."""
    config = run.codes.tokenizer.config if isinstance(run, Prior) else run.config
    if isinstance(config, TokenizerRun):
        _, quantizer = config.parts(len(config.stages) - 1)
    else:
        quantizer = config.quantizer_at(len(config.stages) - 1)
    bits = None if quantizer is None else quantizer.groups * math.log2(quantizer.num_codes)
    prior_steps = run.config.steps if isinstance(run, Prior) else None
    return Size(bits, config.steps, prior_steps, config.data)


def unequal(sizes: Sequence[Size]) -> str:
    """In what the variants differ of that, in words; empty if in nothing."""
    told = []
    bits = sorted({size.bits for size in sizes if size.bits is not None})
    if len(bits) > 1:
        told.append(f"{bits[0]:g} to {bits[-1]:g} bits per token")
    if bits and any(size.bits is None for size in sizes):
        told.append("some tokens not quantized")
    for name, values in (
        ("steps", {size.steps for size in sizes}),
        ("steps of the prior", {size.prior_steps for size in sizes if size.prior_steps is not None}),
    ):
        if len(values) > 1:
            told.append(f"{min(values)} to {max(values)} {name}")
    data = sorted({size.data for size in sizes})
    if len(data) > 1:
        told.append(f"data {', '.join(data)}")
    return "; ".join(told)
