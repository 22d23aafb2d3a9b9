"""A few of a test's parameter sets that stand for all of them."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping


def covering(grid: Mapping[str, Mapping[str, object]], together: int = 1) -> set[str]:
    """Names of parameter sets that have every value of every parameter; the same ones in every run.

    Args:
        grid: the parameters of each set, by its name.
        together: values of so many parameters meet in one of the sets if they do so in the grid.
    """
    pairs = {
        name: sorted((key, repr(value)) for key, value in parameters.items()) for name, parameters in grid.items()
    }
    values = {name: set(itertools.combinations(own, together)) for name, own in pairs.items()}
    order = sorted(grid, key=lambda name: zlib.crc32(name.encode()))  # neighbours in a grid differ in one parameter
    missing = set().union(*values.values())
    kept = set()
    while missing:
        best = max(order, key=lambda name: len(values[name] & missing))
        kept.add(best)
        missing -= values[best]
    return kept
