"""Charts as inline SVG: lines and scatters drawn with the page's own CSS classes, so they follow its theme.

Nothing here sets a colour. Series ``i`` wears class ``s{i}``, a usage level ``i`` class ``u{i}``; text, axes and
grid have classes of their own. A chart is drawn 420 units wide, which a phone shows nearly one to one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 420, 270
LEFT, TOP, BOTTOM = 46, 30, 40
LABEL_ROOM = 92  # right of the plot, for the names at the line ends
LABEL_GAP = 13  # least distance between two names
SIDE = 300  # of a scatter
USAGE_LEVELS = 5


@dataclass(frozen=True)
class Series:
    """One line: its name, its colour slot and its points. Non-finite points interrupt the line."""

    name: str
    slot: int
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Axis:
    """One axis: what it shows and how its ticks read."""

    label: str
    log: bool = False
    form: Callable[[float], str] = "{:,g}".format
    low: float | None = None  # a fixed lower end; the data decide otherwise

    def ticks(self, low: float, high: float, wanted: int) -> list[float]:
        """Round numbers within [low, high]: decades when logarithmic, steps of 1, 2 or 5 otherwise."""
        if self.log:
            first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
            stride = max(1, math.ceil((last - first + 1) / wanted))
            return [10.0**power for power in range(first, last + 1, stride)]
        raw = (high - low) / wanted
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def _finite_points(series: Series, x_axis: Axis, y_axis: Axis) -> np.ndarray:
    points = np.array([series.x, series.y], dtype=np.float64).T.reshape(-1, 2)
    valid = np.isfinite(points).all(axis=1)
    for column, axis in enumerate((x_axis, y_axis)):
        if axis.log:
            valid &= points[:, column] > 0
    points[~valid] = np.nan
    return points


def _extent(values: np.ndarray, axis: Axis) -> tuple[float, float]:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    low = low if axis.low is None else axis.low
    if high <= low:
        high = low * 10 if axis.log else low + 1
    if axis.log:
        return low, high * (high / low) ** 0.03
    margin = 0.05 * (high - low)
    return (low if axis.low is not None else low - margin), high + margin


def _scale(axis: Axis, low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    if axis.log:
        low, high = math.log10(low), math.log10(high)
        return lambda value: start + (end - start) * (math.log10(value) - low) / (high - low)
    return lambda value: start + (end - start) * (value - low) / (high - low)


def _spread(wanted: Sequence[float], low: float, high: float) -> list[float]:
    """Positions as near to the wanted ones as a gap of LABEL_GAP between neighbours allows, within [low, high]."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed = [0.0] * len(wanted)
    # push down from the top, then back up from the bottom edge
    edge = low
    for index in order:
        placed[index] = max(wanted[index], edge)
        edge = placed[index] + LABEL_GAP
    edge = high
    for index in reversed(order):
        placed[index] = min(placed[index], edge)
        edge = placed[index] - LABEL_GAP
    return placed


def _path(points: np.ndarray, to_x: Callable[[float], float], to_y: Callable[[float], float]) -> str:
    commands, pen_down = [], False
    for x, y in points:
        if math.isnan(x):
            pen_down = False
            continue
        commands.append(f"{'L' if pen_down else 'M'}{to_x(x):.1f} {to_y(y):.1f}")
        pen_down = True
    return "".join(commands)


def line_chart(series: Sequence[Series], *, title: str, x_axis: Axis, y_axis: Axis) -> Markup:
    """Draw lines with their names at the right ends; a chart without a single finite point says so."""
    drawn = [(line, _finite_points(line, x_axis, y_axis)) for line in series]
    drawn = [(line, points) for line, points in drawn if np.isfinite(points).any()]
    if not drawn:
        return _nothing(title)
    every = np.concatenate([points for _, points in drawn])
    x_low, x_high = _extent(every[:, 0], x_axis)
    if not x_axis.log:
        x_low, x_high = float(np.nanmin(every[:, 0])), float(np.nanmax(every[:, 0])) or 1.0
        x_high = x_high if x_high > x_low else x_low + 1
    y_low, y_high = _extent(every[:, 1], y_axis)
    right, floor = WIDTH - LABEL_ROOM, HEIGHT - BOTTOM
    to_x = _scale(x_axis, x_low, x_high, LEFT, right)
    to_y = _scale(y_axis, y_low, y_high, floor, TOP)

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>',
        f'<text class="label" x="0" y="12">{escape(y_axis.label)}</text>',
    ]
    for tick in y_axis.ticks(y_low, y_high, 5):
        at = to_y(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{right}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{y_axis.form(tick)}</text>'
        )
    for tick in x_axis.ticks(x_low, x_high, 4):
        at = to_x(tick)
        parts.append(f'<path class="axis" d="M{at:.1f} {floor}v4"/>')
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{floor + 17}" text-anchor="middle">{x_axis.form(tick)}</text>'
        )
    parts.append(f'<path class="axis" d="M{LEFT} {floor}H{right}"/>')
    middle = (LEFT + right) / 2
    parts.append(
        f'<text class="label" x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_axis.label)}</text>'
    )

    ends = [points[np.isfinite(points[:, 0])][-1] for _, points in drawn]
    label_at = _spread([to_y(end[1]) for end in ends], TOP, floor)
    for (line, points), end, at in zip(drawn, ends, label_at, strict=True):
        x, y = to_x(end[0]), to_y(end[1])
        parts.append(
            f'<g class="s{line.slot}"><title>{escape(line.name)}: {escape(y_axis.form(float(end[1])))}</title>'
            f'<path class="line" d="{_path(points, to_x, to_y)}"/>'
            f'<circle class="end" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
            f'<path class="leader" d="M{x + 4:.1f} {y:.1f}L{right + 9} {at:.1f}"/>'
            f'<text class="name" x="{right + 12}" y="{at + 4:.1f}">{escape(line.name)}</text></g>'
        )
    return Markup("".join(parts) + "</svg>")


def _dots(points: np.ndarray) -> str:
    # a zero-length stroke with round caps is a dot, so that thousands of them are one element
    return "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)


def usage_level(counts: np.ndarray) -> np.ndarray:
    """Bin counts by order of magnitude: 0 for unused codes, 1 .. USAGE_LEVELS up to the most used one."""
    top = math.log1p(float(counts.max(initial=0)))
    if top == 0:
        return np.zeros(counts.shape, dtype=np.int64)
    levels: np.ndarray = np.ceil(np.log1p(counts) / top * USAGE_LEVELS)
    return levels.astype(np.int64)


class Chart(NamedTuple):
    """A scatter, and how many codes lie outside its frame."""

    svg: Markup
    outside: int


def scatter_chart(
    codes: np.ndarray,  # [K, 2]
    counts: np.ndarray,  # [K]
    vectors: np.ndarray,  # [N, 2]
    *,
    title: str,
) -> Chart:
    """Draw codes over encoder vectors at one scale; the frame holds 99 % of the vectors and of the used codes."""
    framed = np.concatenate([vectors, codes[counts > 0]])
    framed = framed[np.isfinite(framed).all(axis=1)]
    if not len(framed):
        return Chart(_nothing(title), len(codes))
    low, high = np.quantile(framed, [0.005, 0.995], axis=0)
    centre, reach = (low + high) / 2, max(float((high - low).max()) / 2, 1e-12) * 1.06

    def place(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # [N, 2] -> [n, 2] in the drawing, [N] bool
        inside = (np.abs(points - centre) <= reach).all(axis=1)
        return SIDE / 2 * (1 + (points[inside] - centre) / reach * [1, -1]), inside

    cloud, _ = place(vectors)
    placed, inside = place(codes)
    level = usage_level(counts)[inside]
    parts = [
        f'<svg class="chart scatter" viewBox="0 0 {SIDE} {SIDE}" role="img"><title>{escape(title)}</title>',
        f'<path class="cloud" d="{_dots(cloud)}"/>',
    ]
    for index in range(USAGE_LEVELS + 1):
        if (level == index).any():
            parts.append(f'<path class="dots u{index}" d="{_dots(placed[level == index])}"/>')
    return Chart(Markup("".join(parts) + "</svg>"), int((~inside).sum()))


def _nothing(title: str) -> Markup:
    return Markup(f'<p class="empty">{escape(title)}: nothing was measured.</p>')
