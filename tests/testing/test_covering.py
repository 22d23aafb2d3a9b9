"""Of a grid, what is left still has every value of every parameter."""

from __future__ import annotations

import itertools

from covering import covering


def test_every_value_stays_and_few_sets_do() -> None:
    grid = {f"{a}-{b}-{c}": {"a": a, "b": b, "c": c} for a, b, c in itertools.product(range(7), "xyz", (0.5, None))}
    kept = covering(grid)
    for name, values in {"a": range(7), "b": "xyz", "c": (0.5, None)}.items():
        assert {grid[key][name] for key in kept} == set(values)
    assert len(kept) == 7
    assert covering(dict(reversed(grid.items()))) == kept


def test_nothing_stands_for_itself() -> None:
    assert covering({}) == set()
    assert covering({"only": {}}) == set()


def test_any_two_values_meet() -> None:
    grid = {f"{a}{b}{c}": {"a": a, "b": b, "c": c} for a in range(4) for b in range(3) for c in range(2)}
    kept = covering(grid, together=2)
    for x, y in (("a", "b"), ("a", "c"), ("b", "c")):
        wanted = {(parameters[x], parameters[y]) for parameters in grid.values()}
        assert {(grid[name][x], grid[name][y]) for name in kept} == wanted
    assert 12 <= len(kept) <= 16
