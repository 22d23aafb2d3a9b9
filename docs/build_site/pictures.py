"""The pictures of docs/kernels.md, computed and drawn: ``python docs/build_site/pictures.py``.

Every number in them comes out of the functions here, which use the library where they say so; seeds are fixed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import vqkernels

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "kernels"
# blues and orange of Okabe and Ito, as in the charts of the benchmarks
_INK, _PALE, _BLUE, _ORANGE, _GREY = "#24292f", "#d0d7de", "#0072b2", "#e69f00", "#9aa5b1"


class Cancellation(NamedTuple):
    """Shares of vectors with a wrong code, by how far the data sit from the origin in standard deviations."""

    offsets: list[float]
    expanded: list[float]
    exact: list[float]


def cancellation() -> Cancellation:
    """The expanded formula in float32, and the lookup, held against float64."""
    generator = torch.Generator().manual_seed(0)
    x, codes = torch.randn(1000, 8, generator=generator), torch.randn(2048, 8, generator=generator)
    offsets, expanded, exact = [0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0], [], []
    for offset in offsets:
        a, b = x + offset, codes + offset
        truth = torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        formula = (a.square().sum(1, keepdim=True) - 2 * a @ b.T + b.square().sum(1)).argmin(1)
        expanded.append((formula != truth).double().mean().item())
        exact.append((vqkernels.nearest_code(a, b).indices != truth).double().mean().item())
    return Cancellation(offsets, expanded, exact)


class Bounds(NamedTuple):
    """A patch of a photograph against a codebook of such patches: scores |c|^2/2 - x.c, lowest first."""

    exact: np.ndarray  # [K] float64
    lower: np.ndarray  # [2, K] float64: known after one product of bfloat16 parts per dimension, and after three
    limit: np.ndarray  # [2]: what the code with the lowest bound scores exactly

    @property
    def left(self) -> list[int]:
        """Codes that can still be the nearest, after one product and after three."""
        return [int((lower <= limit).sum()) for lower, limit in zip(self.lower, self.limit, strict=True)]


def bounds() -> Bounds:
    """The patch, of 201, of which one product leaves the median number of codes."""
    found = [_bounds(x, codes) for codes in [_patches(4096, 1)] for x in _patches(201, 0)]
    return sorted(found, key=lambda each: each.left[0])[len(found) // 2]


def _bounds(x: torch.Tensor, codes: torch.Tensor) -> Bounds:  # [D], [K, D]
    (high_x, rest_x), (high, rest) = _split(x), _split(codes)
    (low_x, _), (low, _) = _split(rest_x), _split(rest)
    size_x, size, left_x, left = x.norm(), codes.norm(dim=1), rest_x.norm(), rest.norm(dim=1)
    half = codes.square().sum(1) / 2
    exact = half - codes @ x
    # Cauchy-Schwarz on what the parts leave out, with measured lengths (csrc/README.md)
    one = half - high @ high_x - (left_x * size + high_x.norm() * left)
    three = half - high @ high_x - low @ high_x - high @ low_x
    three = three - 1.01 * (left_x * left + 2**-8 * (left_x * size + size_x * left))
    order, lower = exact.argsort(), torch.stack([one, three])
    return Bounds(exact[order].numpy(), lower[:, order].numpy(), exact[lower.argmin(1)].numpy())


def _split(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest bfloat16, and what it leaves."""
    high = values.bfloat16().double()
    return high, values - high


def _patches(count: int, seed: int, size: int = 8) -> torch.Tensor:  # [count, size^2] float64
    from sklearn.datasets import load_sample_images

    draw = np.random.default_rng(seed)
    photos = [photo.mean(2) / 255 - 0.5 for photo in load_sample_images().images]
    cut = []
    for photo in (photos[i % len(photos)] for i in range(count)):
        y, x = (draw.integers(side - size) for side in photo.shape)
        cut.append(photo[y : y + size, x : x + size].ravel())
    return torch.from_numpy(np.stack(cut)).float().double()


class Boxes(NamedTuple):
    """A codebook in the plane, cut into blocks of neighbours."""

    codes: np.ndarray  # [K, 2]
    boxes: np.ndarray  # [blocks, 2, 2]: lowest and highest corner
    scanned: np.ndarray  # [blocks] bool, those that can hold the nearest code
    query: np.ndarray  # [2]
    nearest: int


def boxes(size: int = 16) -> Boxes:
    """Which blocks a query has to look into."""
    draw = np.random.default_rng(5)
    centers = draw.uniform(-1, 1, (12, 2))
    codes = (centers[draw.integers(12, size=512)] + 0.16 * draw.normal(size=(512, 2))).astype(np.float32)
    parts = [np.arange(len(codes))]
    while len(parts[0]) > size:
        halves = []
        for part in parts:
            axis = np.ptp(codes[part], axis=0).argmax()
            order = part[codes[part, axis].argsort(kind="stable")]
            halves += [order[: len(order) // 2], order[len(order) // 2 :]]
        parts = halves
    corners = np.stack([[codes[part].min(0), codes[part].max(0)] for part in parts])
    query = np.array([0.1, -0.3], np.float32)
    found = vqkernels.nearest_code(torch.from_numpy(query)[None], torch.from_numpy(codes))
    away = np.maximum(0, np.maximum(corners[:, 0] - query, query - corners[:, 1]))
    return Boxes(codes, corners, (away**2).sum(1) <= found.distance.item(), query, int(found.indices))


class Sums(NamedTuple):
    """A sum of the same vectors in many orders, off from the float64 sum by so many units in the last place."""

    floats: np.ndarray  # [orders]
    integers: np.ndarray  # [orders]


def sums(orders: int = 300) -> Sums:
    """Float32 additions one after the other, and ``code_stats``."""
    draw = np.random.default_rng(1)
    numbers = draw.normal(size=4096).astype(np.float32)
    truth = numbers.astype(np.float64).sum()
    unit = float(np.spacing(np.float32(abs(truth))))
    floats, integers = [], []
    for _ in range(orders):
        shuffled = draw.permutation(numbers)
        floats.append((float(np.add.accumulate(shuffled)[-1]) - truth) / unit)
        stats = vqkernels.code_stats(torch.from_numpy(shuffled)[:, None], torch.zeros(4096, dtype=torch.int64), 1)
        integers.append((stats.total.item() - truth) / unit)
    return Sums(np.array(floats), np.array(integers))


def draw_all(folder: Path = FOLDER) -> list[Path]:
    """Write the pictures; the same numbers give the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    style: dict[Any, Any] = {
        "svg.hashsalt": "vqkernels",
        "svg.fonttype": "none",
        "font.family": ["DejaVu Sans", "sans-serif"],
        "font.size": 9,
        "text.color": _INK,
        "axes.edgecolor": _PALE,
        "axes.labelcolor": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": _INK,
        "ytick.color": _INK,
    }
    written = []
    for name, draw in _PICTURES.items():
        with matplotlib.rc_context(style):
            figure = draw()
            figure.savefig(folder / f"{name}.svg", facecolor="white", metadata={"Date": None})
        written.append(folder / f"{name}.svg")
    return written


def _figure(height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def _draw_cancellation() -> Any:
    figure, axes = _figure(2.9)
    found = cancellation()
    axes.plot(found.offsets, [100 * share for share in found.expanded], "o-", color=_ORANGE)
    axes.plot(found.offsets, [100 * share for share in found.exact], "o-", color=_BLUE)
    axes.set_xscale("symlog", linthresh=1, linscale=0.5)
    axes.set_yscale("symlog", linthresh=0.1, linscale=0.4)
    axes.set_xlim(0, 1.2 * max(found.offsets))
    axes.set_xticks(found.offsets, [f"{offset:g}" for offset in found.offsets])
    axes.set_yticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
    axes.minorticks_off()
    axes.set(
        xlabel="offset of the data, in standard deviations", ylabel="vectors with a wrong code, %", ylim=(-0.05, 150)
    )
    axes.text(30, 1, "|x|^2 - 2 x.c + |c|^2 in float32 ", color="#9a6a00", ha="right")
    axes.text(300, 0.02, "vqkernels", color=_BLUE, ha="left")
    axes.set_title("1,000 vectors of 8 dimensions, 2,048 codes", loc="left", fontsize=10, weight="bold")
    return figure


def _draw_bounds() -> Any:
    figure, panels = _figure(3.0, columns=2)
    found = bounds()
    shown = max(12, int(1.25 * found.left[0]))
    place = np.arange(shown)
    for axes, lower, limit, name, left in zip(
        panels, found.lower, found.limit, ("one product", "three products"), found.left, strict=True
    ):
        possible = lower[:shown] <= limit
        for which, color in ((~possible, _GREY), (possible, _BLUE)):
            axes.vlines(place[which], lower[:shown][which], found.exact[:shown][which], color=color, linewidth=1.2)
        axes.axhline(limit, color=_ORANGE, linewidth=1)
        axes.set(xlabel="codes, nearest first", xlim=(-2, shown), ylim=(found.lower[0, :shown].min(), None))
        axes.set_title(f"{name}: {left} of {len(found.exact):,} codes left", loc="left", fontsize=10, weight="bold")
    panels[0].set_ylabel("from lower bound to exact score")
    return figure


def _draw_boxes() -> Any:
    from matplotlib.patches import Rectangle

    figure, axes = _figure(4.2)
    found = boxes()
    for (low, high), scanned in zip(found.boxes, found.scanned, strict=True):
        face = (
            {"facecolor": "#0072b233", "edgecolor": _BLUE} if scanned else {"facecolor": "none", "edgecolor": _PALE}
        )
        axes.add_patch(Rectangle(low, *(high - low), linewidth=1.2 if scanned else 0.8, **face))
    axes.plot(*found.codes.T, ".", color=_GREY, markersize=3)
    axes.plot(*found.query, "*", color=_ORANGE, markersize=11, markeredgecolor=_INK, markeredgewidth=0.5)
    axes.plot(*found.codes[found.nearest], "o", color=_BLUE, markersize=5)
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_title(
        f"{found.scanned.sum()} of {len(found.boxes)} blocks can hold the nearest code of the star",
        loc="left",
        fontsize=10,
        weight="bold",
    )
    return figure


def _draw_sums() -> Any:
    figure, axes = _figure(2.7)
    found = sums()
    low, high = np.floor(found.floats.min()), np.ceil(found.floats.max())
    axes.hist(found.floats, bins=np.arange(low, high + 1, max(1, (high - low) // 40)), color=_GREY)
    axes.axvline(found.integers[0], color=_BLUE, linewidth=2)
    top = axes.get_ylim()[1]
    axes.text(found.integers[0], top, f" code_stats, {len(np.unique(found.integers))} value", color=_BLUE, va="top")
    axes.set(xlabel="off from the float64 sum, in units of the last place", ylabel="orders")
    axes.set_title(
        f"The sum of 4,096 numbers in {len(found.floats)} orders: {len(np.unique(found.floats))} values in float32",
        loc="left",
        fontsize=10,
        weight="bold",
    )
    return figure


_PICTURES = {
    "cancellation": _draw_cancellation,
    "bounds": _draw_bounds,
    "boxes": _draw_boxes,
    "sums": _draw_sums,
}

if __name__ == "__main__":
    for path in draw_all():
        print(os.path.relpath(path), file=sys.stderr)
