"""Scores of a trained tokenizer, or of generated images: ``python -m models.evaluate RUN [--size 256 ...]``.

Without ``--size`` a run is scored on whole photographs, as the demo does it (``RUN/evaluation.json``). With it, on a
data set: the middle crop of every image, in batches, by any of the metrics, into ``RUN/scores.json``:

    python -m models.evaluate runs/vqgan --size 256 --data IMAGENET --metrics psnr ssim lpips rfid codes
    torchrun --nproc_per_node 8 -m models.evaluate runs/vqgan --size 256 --data IMAGENET --device cuda
    python -m models.evaluate SAMPLES --size 256 --data IMAGENET --metrics fid inception_score precision_recall

A folder without a config is taken for generated images. What was interrupted goes on when the same command is given
again. Networks and weights: EfficientNet-Lite0 is installed; the others are looked for in the downloads of torch.hub
and on the hub, or in the folder ``--weights``, by their published file names (vgg16-397923af.pth,
weights-inception-2015-12-05-6726825d.pth, i3d_torchscript.pt) or as a folder named like the backbone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from models import command
from models.errors import UserError, check_file
from models.evaluation.data_set import DEFAULT_METRICS, DataSetConfig, evaluate_samples, evaluate_tokenizer
from models.evaluation.passes import Place
from models.evaluation.photos import Evaluation, evaluate
from models.evaluation.record import print_scores
from models.losses.semantic import high_levels
from models.tokenizers import Tokenizer
from models.tokenizers.concept import ConceptTokenizer
from models.training.checkpoint import find_checkpoint
from models.training.concept_run import ConceptRun
from models.training.runs import load_concepts, load_config, load_tokenizer
from models.training.tokenizer_run import TokenizerRun

__all__ = ["Evaluation", "evaluate", "main"]


def _table(evaluation: Evaluation) -> Table:
    table = Table("photo", "PSNR dB", "SSIM", title="held-out photographs")
    for photo in evaluation.photos:
        table.add_row(photo.name, f"{photo.psnr:.2f}", f"{photo.ssim:.3f}")
    table.add_section()
    table.add_row("mean", f"{evaluation.psnr:.2f}", f"{evaluation.ssim:.3f}")
    table.add_row("PSNR of the mean error", f"{evaluation.psnr_dataset:.2f}", "")
    table.add_row("PSNR of luma", f"{evaluation.psnr_luma:.2f}", "")
    return table


def _whole_photographs(run_dir: Path) -> None:
    evaluation = evaluate(run_dir)
    console = Console()
    console.print(_table(evaluation))
    console.print(
        f"codes in use: {evaluation.utilization:.1%} (perplexity {evaluation.perplexity:.1f}) on held-out, "
        f"{evaluation.utilization_train:.1%} ({evaluation.perplexity_train:.1f}) on training photographs"
    )


def _load(run_dir: Path, step: int | None) -> tuple[Tokenizer | ConceptTokenizer, int | None]:
    """A tokenizer, and how many leading dimensions of its codes are semantic where its recipe knows such."""
    config = load_config(run_dir)
    if isinstance(config, ConceptRun):
        return load_concepts(run_dir, step=step), None
    tokenizer = load_tokenizer(run_dir, step=step)
    semantics = config.semantics if isinstance(config, TokenizerRun) else None
    if semantics is None:
        return tokenizer, None
    high = high_levels(semantics.loss.weights, semantics.sigma)
    return tokenizer, high * tokenizer.quantizer.codebook.shape[2] // semantics.loss.levels


def main(
    target: Annotated[Path, tyro.conf.Positional],
    *,
    size: int | None = None,
    data: str | None = None,
    metrics: tuple[str, ...] = (),
    backbone: str = "efficientnet_lite0",
    weights: Path | None = None,
    split: Literal["train", "val"] = "val",
    resize: bool = True,
    limit: int | None = None,
    keep: int | None = None,
    step: int | None = None,
    batch_size: int = 16,
    workers: int = 0,
    save_every: int = 50,
    device: str | None = None,
    out: Path | None = None,
) -> None:
    """Score a trained tokenizer or generated images.

    Args:
        target: run folder of a tokenizer, or a folder of generated images.
        size: pixels per side of the crop in the middle; without it whole photographs are scored.
        data: data set; that of the run by default.
        metrics: psnr ssim ms_ssim lpips perceptual cosine rfid inception_score fd precision_recall fvd codes
            semantic; of generated images fid inception_score fd precision_recall.
        backbone: network of perceptual, cosine, fd and precision_recall: efficientnet_lite0 vgg16 inception clip
            dinov2 vit_mae resnet50 segformer.
        weights: folder with weights of pretrained networks.
        split: side of the data set, train or val.
        resize: scale the shorter side to size first; otherwise the crop is of the image as it is.
        limit: only so many images or clips.
        keep: decode only the first groups of every token, or the first concept tokens of every image.
        step: checkpoint; the newest by default.
        batch_size: images or clips at a time and process.
        workers: processes that load data.
        save_every: batches after which what was seen is kept.
        device: where the networks run.
        out: file for the scores; scores.json in the folder by default.
    """
    is_run = (target / "config.json").exists()
    if size is None:
        if metrics or data is not None or limit is not None or not is_run:
            raise UserError("size: expected pixels per side of the crops, got none")
        _whole_photographs(target)
        return
    if not target.is_dir():
        raise UserError(f"target: expected a run folder or a folder of images, got {str(target)!r}")
    if not is_run and data is None:
        raise UserError("data: expected the data set that generated images are compared with, got none")
    chosen = metrics or (DEFAULT_METRICS if is_run else ("fd",))
    config = DataSetConfig(
        data=load_config(target).data if data is None else data,
        split=split,
        size=size,
        resize=resize,
        limit=limit,
        keep=keep,
        metrics=chosen,
        backbone=backbone,
        weights=weights,
        batch_size=batch_size,
        workers=workers,
        save_every=save_every,
    )
    path = target / "scores.json" if out is None else out
    check_file(path)
    if is_run:
        checkpoint = find_checkpoint(target, step)
        about = {"run": str(target), "checkpoint": checkpoint.name}
        tokenizer, high = _load(target, step)
        record = evaluate_tokenizer(tokenizer, config, path, device=device, high=high, about=about)
    else:
        record = evaluate_samples(target, config, path, device=device)
    if Place.here(device).main:
        console = Console()
        print_scores(record, console)
        console.print(f"written to {path}", highlight=False)


if __name__ == "__main__":
    sys.exit(command.run(lambda: tyro.cli(main, config=(tyro.conf.FlagCreatePairsOff,))))
