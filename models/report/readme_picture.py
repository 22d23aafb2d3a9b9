"""The picture of the README: a detail of a held-out photo six ways, and how full the codebooks were."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt

from models.report.pictures import load_picture, telling_box
from models.report.results import column, percent

COLOURS = ("#c2521b", "#9a7000", "#0f8a75", "#2f6fe0", "#973cc9")  # readable on white and on a dark page
_DETAIL = 144


def draw_readme_picture(folder: Path, path: Path) -> None:
    """Draw ``path`` (.webp or .png) from the results of the demo in ``folder``."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    tokenizers = results["tokenizers"]
    original = load_picture(folder / results["photos"][0]["file"])
    decoded = [load_picture(folder / entry["photos"][0]["picture"]) for entry in tokenizers]
    box = telling_box(original, decoded, _DETAIL)
    psnr = column("psnr", [entry["metrics"] for entry in tokenizers])

    figure = plt.figure(figsize=(10, 5.4), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, len(tokenizers) + 1, height_ratios=(1, 1.45))
    for place, pixels in enumerate([original, *decoded]):
        axes = figure.add_subplot(grid[0, place])
        axes.imshow(box.cut(pixels), interpolation="nearest")
        axes.axis("off")
        if place:
            entry = tokenizers[place - 1]
            caption = f"{psnr[place - 1].text} dB, {entry['metrics']['bits']:.4g} bits"
            axes.set_title(entry["title"], fontsize=10, color=COLOURS[place - 1], fontweight="bold")
            axes.text(0.5, -0.05, caption, transform=axes.transAxes, ha="center", va="top", fontsize=9)
        else:
            axes.set_title("Original", fontsize=10, fontweight="bold")
    axes = figure.add_subplot(grid[1, :])
    for entry, colour in zip(tokenizers, COLOURS, strict=False):
        curve = entry["curves"]["utilization"]
        axes.plot(curve["step"], curve["value"], color=colour, linewidth=2)
    axes.set(xlabel="training step", ylim=(0, None))
    axes.set_title("Share of the codebook in use", fontsize=10, loc="left")
    axes.yaxis.set_major_formatter(lambda value, _: percent(value))
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, pil_kwargs={"quality": 88})
    plt.close(figure)
