"""Hold two results against each other: before and after a change, or one machine and another."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench import table
from bench.arguments import Parser
from bench.ours import OURS
from bench.record import CaseRecord, Measurement, Run, load
from bench.timing import Timing

# what may differ between two runs that measure the same thing
_EXPECTED = {"commit", "dirty", "date", "command", "load_average"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m bench.compare",
        description=__doc__,
        epilog="change = time of NEW over time of OLD, below 1 is faster. drift = the median change of the peers "
        "whose version and setting are the same in both: that much the machine changed. An implementation is called "
        "faster or slower where the 20-80 % ranges do not overlap, neither as measured nor with the drift taken out.",
    )
    parser.add_argument("old", type=Path, help="a result of bench.run")
    parser.add_argument("new", type=Path, help="another result of the same op")
    args = parser.parse_args(argv)
    try:
        text = compare(load(args.old), load(args.new))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(text)
    return 0


def compare(old: Run, new: Run) -> str:
    """The table of ratios, with everything that is only in one of the two named.

    Raises:
        ValueError: if the runs are of different ops.
    """
    if old.op != new.op:
        raise ValueError(f"NEW: expected a result of {old.op}, got one of {new.op}")
    lines = [f"environment: {text}" for text in _differences(old.environment, new.environment)]
    before = {_key(case): case for case in old.cases}
    after = {_key(case): case for case in new.cases}
    for key in before | after:
        if key not in before or key not in after:
            lines.append(f"{key}: only in {'NEW' if key in after else 'OLD'}")
    rows = [row for key in before if key in after for row in _rows(before[key], after[key])]
    header = ("", "", "old", "new", "change", "verdict")
    return "\n".join([*lines, table.align(header, rows, right=range(2, 5)), _tally(rows)])


def _key(case: CaseRecord) -> str:
    return f"{case.name} " + " ".join(f"{letter}={size}" for letter, size in case.sizes.items())


def _rows(old: CaseRecord, new: CaseRecord) -> list[tuple[str, ...]]:
    before, after = ({m.implementation: m for m in case.measurements} for case in (old, new))
    drift = _drift(before, after)
    rows: list[tuple[str, ...]] = []
    for name in before | after:
        a, b = before.get(name), after.get(name)
        rows.append((old.name, name, _time(a), _time(b), *_change(a, b, drift)))
    rows.append((old.name, "speed-up over best peer", table.times(old.speedup), table.times(new.speedup), "", ""))
    rows.append((old.name, "drift", "", "", "-" if drift is None else f"{drift:.3f}", ""))
    return rows


def _drift(before: Mapping[str, Measurement], after: Mapping[str, Measurement]) -> float | None:
    """How much slower the machine became, by the peers that did not change."""
    changes = [
        b.timing.median / a.timing.median
        for name, a in before.items()
        if (b := after.get(name)) is not None
        and not a.ours
        and (a.version, a.setting) == (b.version, b.setting)
        and a.timing is not None
        and b.timing is not None
    ]
    return median(changes) if changes else None


def _time(m: Measurement | None) -> str:
    if m is None:
        return "missing"
    return table.duration(m.timing.median) if m.timing else "red gate"


def _change(a: Measurement | None, b: Measurement | None, drift: float | None) -> tuple[str, str]:
    if a is None or b is None or a.timing is None or b.timing is None:
        return "-", ""
    verdicts = {_verdict(a.timing, b.timing, factor) for factor in (1.0, drift or 1.0)}
    return f"{b.timing.median / a.timing.median:.3f}", verdicts.pop() if len(verdicts) == 1 else "same"


def _verdict(a: Timing, b: Timing, drift: float) -> str:
    if b.q80 / drift < a.q20:
        return "faster"
    return "slower" if b.q20 / drift > a.q80 else "same"


def _tally(rows: Sequence[Sequence[str]]) -> str:
    ours = [row[-1] for row in rows if row[1].startswith(OURS)]
    told = ", ".join(f"{ours.count(verdict)} {verdict}" for verdict in ("faster", "same", "slower"))
    return f"{OURS}: {told}"


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    keys = (key for key in old | new if key not in _EXPECTED and old.get(key) != new.get(key))
    return [f"{key} {old.get(key)} -> {new.get(key)}" for key in keys]


if __name__ == "__main__":
    sys.exit(main())
