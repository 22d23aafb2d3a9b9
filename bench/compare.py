"""Hold two results against each other: before and after a change, or one machine and another."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import table
from bench.record import CaseRecord, Measurement, Run, load

# what may differ between two runs that measure the same thing
_EXPECTED = {"commit", "dirty", "date", "command", "load_average"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare",
        description=__doc__,
        epilog='change = time of NEW over time of OLD, below 1 is faster; "~": the 20-80 % ranges overlap. '
        "Look at a peer first: if it changed, the machine did.",
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
    header = ("", "", "old", "new", "change", "")
    return "\n".join([*lines, table.align(header, rows, right=range(2, 5))])


def _key(case: CaseRecord) -> str:
    return f"{case.name} " + " ".join(f"{letter}={size}" for letter, size in case.sizes.items())


def _rows(old: CaseRecord, new: CaseRecord) -> list[tuple[str, ...]]:
    before, after = ({m.implementation: m for m in case.measurements} for case in (old, new))
    rows: list[tuple[str, ...]] = []
    for name in before | after:
        a, b = before.get(name), after.get(name)
        rows.append((old.name, name, _time(a), _time(b), *_change(a, b)))
    rows.append((old.name, "speed-up over best peer", table.times(old.speedup), table.times(new.speedup), "", ""))
    return rows


def _time(m: Measurement | None) -> str:
    if m is None:
        return "missing"
    return table.duration(m.timing.median) if m.timing else "red gate"


def _change(a: Measurement | None, b: Measurement | None) -> tuple[str, str]:
    if a is None or b is None or a.timing is None or b.timing is None:
        return "-", ""
    overlap = a.timing.q20 <= b.timing.q80 and b.timing.q20 <= a.timing.q80
    return f"{b.timing.median / a.timing.median:.3f}", "~" if overlap else ""


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    keys = (key for key in old | new if key not in _EXPECTED and old.get(key) != new.get(key))
    return [f"{key} {old.get(key)} -> {new.get(key)}" for key in keys]


if __name__ == "__main__":
    sys.exit(main())
