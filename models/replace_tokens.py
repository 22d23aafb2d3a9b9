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

import torch
import tyro
from rich.console import Console
from rich.table import Table

import vqkernels
from models import command
from models.data.loader import Loader
from models.data.source import open_source
from models.data.transforms import Crop
from models.errors import UserError
from models.evaluation.record import write_json
from models.tokenizers import Tokenizer
from models.training.runs import load_config, load_tokenizer

MOST = 1024  # of vqkernels.top_codes


@torch.no_grad()
def replaced(tokenizer: Tokenizer, images: torch.Tensor, ranks: Sequence[int]) -> list[torch.Tensor]:
    """Reconstructions of images [B, 3, H, W] from the codes of each rank, the first of which is 1."""
    quantizer = tokenizer.quantizer
    groups, _, _ = quantizer.codebook.shape
    vectors = tokenizer.latents(images).movedim(1, -1)  # [B, h, w, D]
    parts = vectors.unflatten(-1, (groups, -1))  # [B, h, w, G, D / G]
    found = vqkernels.top_codes(parts, quantizer.codebook, max(ranks), metric=quantizer.metric)
    chosen = [found.indices[..., rank - 1] for rank in ranks]  # [B, h, w, G] each
    return [tokenizer.decode(codes if groups > 1 else codes[..., 0]) for codes in chosen]


def replacement_curve(
    tokenizer: Tokenizer,
    ranks: Sequence[int],
    *,
    data: str,
    split: Literal["train", "val"] = "val",
    size: int,
    images: int = 100,
    batch_size: int = 8,
) -> list[float]:
    """PSNR in dB at each rank, the mean over middle crops of images.

    Args:
        tokenizer: in eval mode.
        ranks: M, each from 1 to the number of codes.
        data: data set.
        split: side of it.
        size: pixels per side of the crops.
        images: how many, at most.
        batch_size: at a time.
    """
    most = min(MOST, tokenizer.quantizer.codebook.shape[1])
    wrong = [rank for rank in ranks if not 1 <= rank <= most]
    if wrong or not ranks:
        raise UserError(f"ranks: expected numbers from 1 to {most}, got {wrong[0] if wrong else 'none'}")
    if size % tokenizer.downsample:
        raise UserError(f"size: expected a multiple of {tokenizer.downsample} pixels, got {size}")
    if images < 1:
        raise UserError(f"images: expected at least 1, got {images}")
    source, crop = open_source(data, split), Crop(size=size, resize=size, place="center")
    device = next(tokenizer.parameters()).device
    wanted, seen = min(images, len(source)), 0
    sums = [0.0] * len(ranks)
    with Loader(source, crop, batch_size=min(batch_size, wanted), shuffle=False, device=device) as loader:
        for batch in loader:
            originals = batch["image"][: wanted - seen]
            for place, made in enumerate(replaced(tokenizer, originals, ranks)):
                error = (made.clamp(-1, 1).double() - originals.double()).square().mean((1, 2, 3)) / 4
                sums[place] += (-10 * error.log10()).sum().item()
            seen += len(originals)
            if seen == wanted:
                break
    return [total / seen for total in sums]


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
        tokenizer.to(device)
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
