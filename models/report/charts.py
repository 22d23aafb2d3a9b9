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
NAME_ROOM, ROW = 150, 24  # of a chart of dots: left of the plot, and the height of a name
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
    margin: float = 0.05  # room beside the data, as a share of the axis

    def on_axis(self, values: np.ndarray) -> np.ndarray:
        """Values as they are spaced along the axis; NaN where it cannot show them."""
        shown = np.where(np.isfinite(values) & ((values > 0) | (not self.log)), values, np.nan)
        return np.log10(shown) if self.log else shown

    def ticks(self, low: float, high: float, wanted: int) -> list[float]:
        """Round values between two ends in axis units: powers of ten if logarithmic, else steps of 1, 2 or 5."""
        raw = (high - low) / wanted
        if self.log:
            step: float = max(1, math.ceil(raw))
        else:
            power = 10.0 ** math.floor(math.log10(raw))
            step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        marks = [index * step for index in range(first, last + 1)]
        return [10.0**mark for mark in marks] if self.log else marks


@dataclass(frozen=True)
class Scale:
    """An axis laid out between two places in the drawing."""

    axis: Axis
    low: float  # the ends in axis units
    high: float
    start: float  # where they are drawn
    end: float

    @classmethod
    def fit(cls, axis: Axis, units: np.ndarray, start: float, end: float) -> Scale:
        low, high = float(np.nanmin(units)), float(np.nanmax(units))
        high = high if high > low else low + 1  # a single value still needs an axis
        room = axis.margin * (high - low)
        return cls(axis, low - room if axis.low is None else axis.low, high + room, start, end)

    def place(self, units: np.ndarray) -> np.ndarray:
        return self.start + (self.end - self.start) * (units - self.low) / (self.high - self.low)

    def ticks(self, wanted: int) -> list[tuple[float, str]]:
        """Places and texts."""
        values = self.axis.ticks(self.low, self.high, wanted)
        places = self.place(self.axis.on_axis(np.array(values)))
        return [(float(place), self.axis.form(value)) for place, value in zip(places, values, strict=True)]


def line_chart(series: Sequence[Series], *, title: str, x_axis: Axis, y_axis: Axis) -> Markup:
    """Draw lines with their names at the right ends; a chart without a single finite point says so."""
    points = [_points(line, x_axis, y_axis) for line in series]
    drawn = [(line, at) for line, at in zip(series, points, strict=True) if np.isfinite(at).any()]
    if not drawn:
        return _nothing(title)
    every = np.concatenate([at for _, at in drawn])
    x_scale = Scale.fit(x_axis, every[:, 0], LEFT, WIDTH - LABEL_ROOM)
    y_scale = Scale.fit(y_axis, every[:, 1], HEIGHT - BOTTOM, TOP)
    placed = [np.stack([x_scale.place(at[:, 0]), y_scale.place(at[:, 1])], axis=1) for _, at in drawn]
    ends = [at[np.isfinite(at[:, 0])][-1] for at in placed]
    label_at = _spread([end[1] for end in ends], TOP, HEIGHT - BOTTOM)
    lines = [
        _line(line, at, end, label) for (line, _), at, end, label in zip(drawn, placed, ends, label_at, strict=True)
    ]
    opening = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>'
    return Markup("".join([opening, *_axes(x_scale, y_scale), *lines, "</svg>"]))


def dot_chart(rows: Sequence[tuple[str, Sequence[float]]], *, title: str, axis: Axis) -> Markup:
    """A row for every name: a dot for each of its finite values and a stroke at their mean."""
    units = [axis.on_axis(np.array(values, float)) for _, values in rows]
    every = np.concatenate(units) if units else np.array([])
    if not np.isfinite(every).any():
        return _nothing(title)
    floor = TOP + ROW * len(rows)
    scale = Scale.fit(axis, every, NAME_ROOM, WIDTH - 12)
    height, middle = floor + BOTTOM, (scale.start + scale.end) / 2
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img"><title>{escape(title)}</title>']
    for at, text in scale.ticks(4):
        parts.append(f'<path class="grid" d="M{at:.1f} {TOP}V{floor}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{floor + 17}" text-anchor="middle">{text}</text>')
    for number, ((name, _), values) in enumerate(zip(rows, units, strict=True)):
        y, finite = TOP + ROW * (number + 0.5), values[np.isfinite(values)]
        parts.append(
            f'<text class="tick" x="{NAME_ROOM - 9}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>'
        )
        parts.append(f'<path class="grid" d="M{NAME_ROOM} {y:.1f}H{WIDTH - 12}"/>')
        if len(finite):
            places, mean = scale.place(finite), float(scale.place(finite.mean()))
            parts.append(
                f'<g class="s3"><path class="dot" d="{_dots(np.stack([places, np.full_like(places, y)], 1))}"/>'
            )
            parts.append(f'<path class="mean" d="M{mean:.1f} {y - 8:.1f}v16"/></g>')
    parts.append(f'<path class="axis" d="M{NAME_ROOM} {floor}H{WIDTH - 12}"/>')
    parts.append(
        f'<text class="label" x="{middle}" y="{height - 6}" text-anchor="middle">{escape(axis.label)}</text>'
    )
    return Markup("".join(parts) + "</svg>")


def _points(series: Series, x_axis: Axis, y_axis: Axis) -> np.ndarray:  # [N, 2] in axis units, NaN in pairs
    x, y = x_axis.on_axis(np.array(series.x, float)), y_axis.on_axis(np.array(series.y, float))
    points = np.stack([x, y], axis=1)
    points[np.isnan(points).any(axis=1)] = np.nan
    return points


def _axes(x_scale: Scale, y_scale: Scale) -> list[str]:
    left, right, floor = x_scale.start, x_scale.end, y_scale.start
    parts = [f'<text class="label" x="0" y="12">{escape(y_scale.axis.label)}</text>']
    for at, text in y_scale.ticks(5):
        parts.append(f'<path class="grid" d="M{left} {at:.1f}H{right}"/>')
        parts.append(f'<text class="tick" x="{left - 7}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    for at, text in x_scale.ticks(4):
        parts.append(f'<path class="axis" d="M{at:.1f} {floor}v4"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{floor + 17}" text-anchor="middle">{text}</text>')
    parts.append(f'<path class="axis" d="M{left} {floor}H{right}"/>')
    label, middle = escape(x_scale.axis.label), (left + right) / 2
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{label}</text>')
    return parts


def _line(series: Series, points: np.ndarray, end: np.ndarray, label_at: float) -> str:
    x, y, edge = end[0], end[1], WIDTH - LABEL_ROOM
    return (
        f'<g class="s{series.slot}"><path class="line" d="{_path(points)}"/>'
        f'<circle class="end" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
        f'<path class="leader" d="M{x + 4:.1f} {y:.1f}L{edge + 9} {label_at:.1f}"/>'
        f'<text class="name" x="{edge + 12}" y="{label_at + 4:.1f}">{escape(series.name)}</text></g>'
    )


def _path(points: np.ndarray) -> str:  # [N, 2]
    pen_down, commands = False, []
    for x, y in points:
        if not math.isnan(x):
            commands.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        pen_down = not math.isnan(x)
    return "".join(commands)


def _spread(wanted: Sequence[float], low: float, high: float) -> list[float]:
    """Places as near to the wanted ones as LABEL_GAP between neighbours allows, within [low, high] if they fit."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed = list(wanted)
    # push down from the top, then back up from the bottom edge
    edge = low
    for index in order:
        placed[index] = max(placed[index], edge)
        edge = placed[index] + LABEL_GAP
    edge = high
    for index in reversed(order):
        placed[index] = min(placed[index], edge)
        edge = placed[index] - LABEL_GAP
    return placed


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
    """Draw codes over encoder vectors at one scale; the frame holds the used codes and 99 % of the vectors."""
    used = codes[counts > 0]
    if not len(used) or not (np.isfinite(used).all() and np.isfinite(vectors).all()):
        return Chart(_nothing(title), len(codes))
    cloud = np.quantile(vectors, [0.005, 0.995], axis=0)
    framed = np.concatenate([cloud, used])
    low, high = framed.min(axis=0), framed.max(axis=0)
    centre, reach = (low + high) / 2, max(float((high - low).max()) / 2, 1e-12) * 1.06

    def place(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # [N, 2] -> [n, 2] in the drawing, [N] bool
        inside = (np.abs(points - centre) <= reach).all(axis=1)
        return SIDE / 2 * (1 + (points[inside] - centre) / reach * [1, -1]), inside

    placed_vectors, _ = place(vectors)
    placed, inside = place(codes)
    level = usage_level(counts)[inside]
    parts = [
        f'<svg class="chart scatter" viewBox="0 0 {SIDE} {SIDE}" role="img"><title>{escape(title)}</title>',
        f'<path class="cloud" d="{_dots(placed_vectors)}"/>',
    ]
    for index in range(USAGE_LEVELS + 1):
        if (level == index).any():
            parts.append(f'<path class="dots u{index}" d="{_dots(placed[level == index])}"/>')
    return Chart(Markup("".join(parts) + "</svg>"), int((~inside).sum()))


def _nothing(title: str) -> Markup:
    return Markup(f'<p class="empty">{escape(title)}: nothing was measured.</p>')
