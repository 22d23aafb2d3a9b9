"""What the step ``tiles`` has measured, as rows of the launch table: ``python -m bench.gpu.tuned DIR/suite.json``.

The fastest shape of each width with the right indices. A row names the file of bench/results that the findings are
kept in; copy that, and put the rows in place of those of their device in vqkernels/ops/nearest_code/triton.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu import internals


def rows(suite: dict[str, Any]) -> list[Any]:
    """One row per width measured; neighbours with one shape are one row.

    Raises:
        ValueError: if there is nothing to choose from.
    """
    found = suite["steps"].get("tiles", {}).get("findings", {})
    launcher = internals.launcher()
    fastest: dict[int, tuple[float, Any]] = {}
    for name, finding in found.items():
        if not finding.get("same indices"):
            continue
        columns = launcher.layout(int(name.split()[0].removeprefix("D="))).columns
        candidate = finding["timing"]["median"], launcher.Config(*finding["shape"])
        fastest[columns] = min(candidate, fastest.get(columns, candidate))
    if not fastest:
        raise ValueError("suite: expected findings of the step tiles, got none with the right indices")
    stamp = suite["environment"]
    source = f"nearest_code/tiles/{stamp['date'][:10]}_{stamp['commit']}{'-dirty' * stamp['dirty']}.json"
    kept: list[Any] = []
    for columns in sorted(fastest):
        if kept and kept[-1].config == fastest[columns][1]:
            kept.pop()
        kept.append(launcher.Tuned(columns, fastest[columns][1], source))
    # the widest was measured for all that is wider
    return [*kept[:-1], kept[-1]._replace(columns=launcher.WIDEST)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.tuned", description=__doc__)
    parser.add_argument("suite", type=Path, help="suite.json of a run on a GPU")
    for row in rows(json.loads(parser.parse_args(argv).suite.read_text())):
        columns = "WIDEST" if row.columns == internals.launcher().WIDEST else row.columns
        print(f'        Tuned({columns}, Config{tuple(row.config[:4])}, "{row.source}"),')
    return 0


if __name__ == "__main__":
    sys.exit(main())
