"""Token replacement: ``python -m models.replace_tokens RUN [--ranks 1 10 100]``.

As VQGAN-LC has it: every token becomes the M-th nearest code of its vector (in every group), the image is decoded,
and its PSNR tells how well codes stand in for their neighbours. M = 1 is the tokenizer itself. Writes
``RUN/replacement.json`` and the curve, ``RUN/replacement.png``.

D code dimension, G groups, K codes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from models import command
from models.environment import device_of
from models.evaluation.record import write_json
from models.evaluation.replacement import MOST, replacement_curve
from models.training.runs import load_config, load_tokenizer


def draw(path: Path, ranks: Sequence[int], psnr: Sequence[float], name: str) -> None:
    """The curve, ranks on a logarithmic axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(ranks, psnr, marker="o")
    axes.set(xscale="log", xlabel="rank M of the code taken", ylabel="PSNR dB", title=name)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def main(
    run: Annotated[Path, tyro.conf.Positional],
    *,
    ranks: tuple[int, ...] = (1, 10, 50, 100, 1000),
    data: str | None = None,
    split: Literal["train", "val"] = "val",
    size: int | None = None,
    images: int = 100,
    batch_size: int = 8,
    step: int | None = None,
    device: str | None = None,
) -> None:
    """Replace the tokens of images by the M-th nearest codes and see what is left of them.

    Args:
        run: run folder of a tokenizer.
        ranks: M; those beyond the number of codes are left out.
        data: data set; that of the run by default.
        split: side of it, train or val.
        size: pixels per side of the crops in the middle; those of the training by default.
        images: how many, at most.
        batch_size: at a time.
        step: checkpoint; the newest by default.
        device: where the network runs.
    """
    tokenizer = load_tokenizer(run, step=step)
    if device is not None:
        tokenizer.to(device_of(device))
    config = load_config(run)
    most = min(MOST, tokenizer.quantizer.codebook.shape[1])
    kept = sorted({rank for rank in ranks if rank <= most})
    options: dict[str, Any] = {
        "data": config.data if data is None else data,
        "split": split,
        "size": config.stages[-1].image_size if size is None else size,
        "images": images,
    }
    psnr = replacement_curve(tokenizer, kept, batch_size=batch_size, **options)
    content = {
        "run": str(run),
        **options,
        "codes": tokenizer.quantizer.codebook.shape[1],
        "ranks": kept,
        "psnr": psnr,
    }
    write_json(run / "replacement.json", content)
    draw(run / "replacement.png", kept, psnr, config.recipe)
    table = Table("M", "PSNR dB", title=f"{config.recipe}: tokens replaced by the M-th nearest code")
    for rank, value in zip(kept, psnr, strict=True):
        table.add_row(str(rank), f"{value:.2f}" if math.isfinite(value) else str(value))
    console = Console()
    console.print(table)
    console.print(f"written to {run / 'replacement.json'} and replacement.png", highlight=False)


if __name__ == "__main__":
    sys.exit(command.run(lambda: tyro.cli(main, prog="python -m models.replace_tokens")))
