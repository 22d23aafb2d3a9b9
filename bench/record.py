"""What a run leaves behind: dataclasses that are the JSON schema, and everything derived from them."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.case import Verdict, Work
from bench.ceiling import Ceiling
from bench.machine import slug
from bench.ours import OURS
from bench.timing import Timing

SCHEMA = 2


@dataclass(frozen=True)
class Rates:
    """What a time means, by the least work the case can do with."""

    pairs: float  # per second
    flops: float  # per second
    bytes: float  # per second
    of_peak: float  # least time by arithmetic or traffic at the measured ceilings, over the time taken
    of_exps: float | None = (
        None  # least time by exponentials, over the time taken; None: there are none, or no ceiling
    )


@dataclass
class Measurement:
    """One implementation on one case."""

    implementation: str
    version: str
    ours: bool
    setting: dict[str, Any]
    arithmetic: str  # whose ceiling it is held against
    verdict: Verdict
    timing: Timing | None  # None: not timed because the gate was red
    rates: Rates | None
    peak_bytes: int | None  # beyond the inputs; None: not measured


@dataclass
class CaseRecord:
    """All implementations on one case."""

    name: str
    note: str
    sizes: dict[str, int]
    true_sizes: dict[str, int]
    work: Work
    ceiling: Ceiling
    measurements: list[Measurement]
    skipped: dict[str, str]  # implementation -> reason

    @property
    def ours(self) -> Measurement:
        """The default backend's."""
        return next(m for m in self.measurements if m.implementation == OURS)

    @property
    def green(self) -> bool:
        return all(m.verdict.passed for m in self.measurements if m.ours)

    @property
    def best_peer(self) -> Measurement | None:
        """The fastest other implementation whose answers passed the gate."""
        return min((m for m in self._timed_peers() if m.verdict.passed), key=seconds, default=None)

    @property
    def best_inexact(self) -> Measurement | None:
        """The fastest other implementation whose answers did not."""
        return min((m for m in self._timed_peers() if not m.verdict.passed), key=seconds, default=None)

    @property
    def speedup(self) -> float | None:
        """Time of the best peer over ours."""
        return None if self.best_peer is None else self.ratio(self.best_peer)

    def ratio(self, measurement: Measurement) -> float | None:
        """Time over ours."""
        if measurement.timing is None or self.ours.timing is None:
            return None
        return measurement.timing.median / self.ours.timing.median

    def _timed_peers(self) -> list[Measurement]:
        return [m for m in self.measurements if not m.ours and m.timing]


def rates(work: Work, ceiling: Ceiling, arithmetic: str, timing: Timing | None) -> Rates | None:
    """What a time means."""
    if timing is None:
        return None
    # a ceiling without this arithmetic (a rehearsal) is that of float32
    peak = ceiling.flops.get(arithmetic, ceiling.flops["fp32"])
    floor = max(work.flops / peak, work.bytes / ceiling.bytes)
    of_exps = work.exps / ceiling.exps / timing.median if work.exps and ceiling.exps else None
    pairs, flops, traffic, of_peak = (
        amount / timing.median for amount in (work.pairs, work.flops, work.bytes, floor)
    )
    return Rates(pairs, flops, traffic, of_peak, of_exps)


@dataclass
class Run:
    """One run of the benchmark of one op."""

    schema: int
    op: str
    complete: bool  # every case of the registry, at full size
    environment: dict[str, Any]
    rounds: int
    min_seconds: float
    cases: list[CaseRecord]

    @property
    def green(self) -> bool:
        return all(case.green for case in self.cases)

    def file_name(self) -> str:
        stamp = self.environment
        dirty = "-dirty" if stamp["dirty"] else ""
        return f"{slug(stamp)}_{stamp['date'][:10]}_{stamp['commit']}{dirty}.json"

    @property
    def device(self) -> str:
        """Kind of the device."""
        return str(self.environment["device"]["kind"])


def seconds(measurement: Measurement) -> float:
    """Median time of a measurement that has one."""
    assert measurement.timing is not None
    return measurement.timing.median


def save(run: Run, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # written beside and moved: a run that is cut off leaves the last whole file
    partial = path.with_suffix(".json.part")
    partial.write_text(json.dumps(dataclasses.asdict(run), indent=1) + "\n")
    partial.replace(path)


def load(path: Path) -> Run:
    """Read a run.

    Raises:
        ValueError: if the file is not a result of this schema, naming the field.
    """
    try:
        data = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        got = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{path}: expected a result of schema {SCHEMA}, got {got}")
    run: Run = _build(Run, data, str(path))
    return run


def _build(kind: Any, value: Any, where: str) -> Any:
    """Turn plain JSON data into the annotated type, strictly."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _build(args[0], value, where)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        # a field that came later, with a default, may be missing
        needed = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
        if not isinstance(value, dict) or not needed <= set(value) <= set(hints):
            got = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise ValueError(f"{where}: expected the fields {sorted(hints)}, got {got}")
        build: Any = kind
        return build(**{name: _build(hints[name], item, f"{where}.{name}") for name, item in value.items()})
    if origin is list and isinstance(value, list):
        return [_build(args[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict) and args[1] is not Any:
        return {key: _build(args[1], item, f"{where}.{key}") for key, item in value.items()}
    plain = (int, float) if kind is float else origin or kind
    if not isinstance(value, plain) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where}: expected {kind}, got {value!r}")
    return value
