"""What the pocket recipes make: the tables and the pictures of models/README.md."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Patch

from models.data.pixels import to_image
from models.report.blocks import write_block
from models.report.claims import write_minutes

MODELS = Path(__file__).parents[1]
RESULTS = MODELS / "results" / "systems.json"
ASSETS = MODELS.parent / "assets"
PRIOR_RESULTS = MODELS / "results" / "priors.json"
README = MODELS / "README.md"
SYSTEM_PICTURES = ("systems.webp", "prefixes.webp", "classes.webp")
PRIOR_PICTURES = ("priors.webp", "video.webp")
_HEADER = "| recipe | codes | bits a token | tokens | PSNR (baseline) | codes in use | perplexity | steps | minutes |"
_RATIOS = ("val_unigram_ratio", "val_bigram_ratio", "val_gaussian_ratio")


class System(NamedTuple):
    """A trained recipe and some of what it reconstructs. n images of S pixels."""

    entry: dict[str, Any]  # of RESULTS
    images: torch.Tensor  # [n, 3, S, S]
    reconstructions: torch.Tensor  # [n, 3, S, S]


def table(entries: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [_HEADER, "|---|---|" + "---:|" * 7]
    for entry in entries:
        codes, bits, used, perplexity = "continuous", "", "", ""
        if entry["codes"] is not None:
            groups, num_codes, dim = entry["codes"]
            codes = f"{num_codes} of {dim} dimensions" if groups == 1 else f"{groups} x {num_codes} of {dim}"
            bits = f"{entry['bits_per_token']:.0f}"
            used, perplexity = f"{entry['utilization']:.1%}", f"{entry['perplexity']:.0f}"
        quality = f"{entry['psnr']:.2f} ({entry['psnr_baseline']:.2f})"
        cells = (f"`{entry['recipe']}`", codes, bits, entry["tokens"], quality, used, perplexity, entry["steps"])
        lines.append("| " + " | ".join(map(str, cells)) + f" | {entry['minutes']:.1f} |")
    return "\n".join(lines)


def prior_table(entries: Sequence[dict[str, Any]]) -> str:
    """Markdown; a ratio below 1 says that the prior knows more than what it is compared with."""
    lines = [
        "| prior | learns | held-out loss | of single codes | of pairs of codes | of a Gaussian | steps | minutes |",
        "|---|---|" + "---:|" * 6,
    ]
    for entry in entries:
        ratios = [f"{entry[name]:.2f}" if name in entry else "" for name in _RATIOS]
        cells = (f"`{entry['recipe']}`", entry["of"], f"{entry['val_loss']:.3f}", *ratios, entry["steps"])
        lines.append("| " + " | ".join(map(str, cells)) + f" | {entry['minutes']:.1f} |")
    return "\n".join(lines)


def prior_block(entries: Sequence[dict[str, Any]], left: Sequence[str]) -> str:
    """The table, what it is of, and the names of priors that are not in it."""
    told = (
        "`python -m models.pipelines --record`, street scenes of 64 pixels: loss on held-out samples, in nats a code "
        "or as squared error, and its ratio to that of counted codes, of counted pairs of neighbours, and of the "
        f"best prediction for independent normal channels at the same times and noise. {_made(entries)}"
    )
    if left:
        told += f" Not measured yet: {', '.join(f'`{name}`' for name in left)}."
    return f"{prior_table(entries)}\n\n{told}"


def _made(entries: Sequence[dict[str, Any]]) -> str:
    stamps = (entry["environment"] for entry in entries)
    made = dict.fromkeys(f"{s['Processor']}, threads: {s['Threads']}, {s['vqkernels']}" for s in stamps)
    return f"Minutes of training at the median rate of a step. {'; '.join(made)}."


def block(entries: Sequence[dict[str, Any]]) -> str:
    """The table and what it is of, as models/README.md shows it."""
    first = entries[0]
    told = (
        f"`python -m models.systems --record`: PSNR in dB of the mean error over {first['crops']} held-out crops of "
        f"{first['image_size']} pixels, in brackets that of the mean colour of each crop; codes in use on these "
        f"crops. {_made(entries)}"
    )
    cut = [_prefixes(entry) for entry in entries if "psnr_prefixes" in entry]
    if cut:
        told += f"\n\nPSNR of the first concept tokens alone: {'; '.join(cut)}."
    return f"{table(entries)}\n\n{told}"


def _prefixes(entry: dict[str, Any]) -> str:
    found = entry["psnr_prefixes"]
    return f"`{entry['recipe']}` {', '.join(f'{value:.2f} ({kept})' for kept, value in found.items())}"


def draw_systems(systems: Sequence[System], path: Path) -> None:
    """Originals, and a row for what each system makes of them; data sets one below the other."""
    ordered = sorted(systems, key=lambda system: system.entry["data"])
    sets = [list(group) for _, group in groupby(ordered, key=lambda system: system.entry["data"])]
    rows = [
        row
        for group in sets
        for row in (
            (f"held-out crops\n({group[0].entry['data'].split(':')[0]})", group[0].images),
            *((f"{s.entry['recipe']}\n{s.entry['psnr']:.1f} dB", s.reconstructions) for s in group),
        )
    ]
    draw_rows(rows, path)


def draw_rows(
    rows: Sequence[tuple[str, torch.Tensor]],
    path: Path,
    *,
    titles: Sequence[str] = (),
    legend: Sequence[tuple[str, np.ndarray]] = (),
) -> None:
    """A picture (.webp or .png) of rows of images [n, 3, S, S], each with its label.

    Args:
        rows: label and images of each.
        path: of the picture.
        titles: of the columns, none or one each.
        legend: names and colours [3] of 0 to 255, below the rows.
    """
    columns, above, below = len(rows[0][1]), 0.25 if titles else 0.0, 0.55 if legend else 0.0  # inches
    height = 1.15 * len(rows) + above + below
    figure, grid = plt.subplots(
        len(rows), columns, figsize=(1.15 * columns + 2, height), squeeze=False, facecolor="white"
    )
    for line, (label, images) in zip(grid, rows, strict=True):
        for axes, image in zip(line, images, strict=True):
            axes.imshow(to_image(image), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    for axes, title in zip(grid[0], titles, strict=bool(titles)):
        axes.set_title(title, fontsize=9, pad=3)
    if legend:
        patches = [Patch(color=colour / 255, label=name) for name, colour in legend]
        figure.legend(handles=patches, loc="lower center", ncols=8, fontsize=8, frameon=False)
    top, bottom = 0.995 - above / height, 0.005 + below / height
    figure.subplots_adjust(left=0.2, right=0.995, top=top, bottom=bottom, wspace=0.04, hspace=0.04)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, pil_kwargs={"quality": 82})
    plt.close(figure)


def record(entries: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write what models/README.md shows; the pictures are in ``folder``."""
    _record(RESULTS, entries, folder, SYSTEM_PICTURES)
    write_block(README, "systems", block(entries))


def record_priors(entries: Sequence[dict[str, Any]], left: Sequence[str], folder: Path) -> None:
    """Write what models/README.md shows of priors; the pictures are in ``folder``."""
    _record(PRIOR_RESULTS, entries, folder, PRIOR_PICTURES)
    write_block(README, "priors", prior_block(entries, left))
    write_minutes()


def recorded_minutes() -> dict[str, float]:
    """What each prior took when it was recorded."""
    entries = json.loads(PRIOR_RESULTS.read_text(encoding="utf-8"))
    return {entry["recipe"]: entry["minutes"] for entry in entries}


def _record(path: Path, entries: Sequence[dict[str, Any]], folder: Path, pictures: Sequence[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(list(entries), indent=1) + "\n", encoding="utf-8")
    for name in pictures:
        if (folder / name).exists():
            shutil.copyfile(folder / name, ASSETS / name)
