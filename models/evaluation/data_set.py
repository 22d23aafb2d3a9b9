"""Scores of a tokenizer, or of generated images, on a data set of any size.

In batches, on any number of processes with the same result, resumable. B batch, T frames, n images, S pixels.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from models.data.loader import Batch
from models.data.sample import Source
from models.data.source import open_source
from models.data.transforms import Crop
from models.errors import UserError
from models.evaluation.measures import (
    METRICS,
    SAMPLE_METRICS,
    EmbeddingMeasure,
    Measure,
    Networks,
    PsnrMeasure,
    Seen,
    build_measures,
)
from models.evaluation.passes import AllImages, Count, Kept, Limited, Place, run_pass
from models.evaluation.record import PIXELS, draw_worst, tool, write_json
from models.evaluation.subjects import Subject, subject_of
from models.metrics.accumulator import Accumulator
from models.tokenizers import Tokenizer
from models.tokenizers.concept import ConceptTokenizer

DEFAULT_METRICS = ("psnr", "ssim", "perceptual", "fd", "codes")
TOKENIZER_METRICS = tuple(name for name in METRICS if name != "fid")  # of reconstructions it is rfid


@dataclass(frozen=True, kw_only=True)
class DataSetConfig:
    """What is scored, and on what."""

    data: str  # "embedded", "scenes", a folder, ...
    split: Literal["train", "val"] = "val"
    size: int = 256  # pixels per side of the crop in the middle
    resize: bool = True  # scale the shorter side to size first; otherwise the crop is of the image as it is
    limit: int | None = None  # only so many images or clips, the first ones
    keep: int | None = None  # decode only the first groups of a token, or the first concept tokens of an image
    metrics: tuple[str, ...] = DEFAULT_METRICS  # see models.evaluation.measures
    backbone: str = "efficientnet_lite0"  # network of "perceptual", "cosine", "fd" and "precision_recall"
    weights: Path | None = None  # folder with weights of pretrained networks; None looks in the usual places
    batch_size: int = 16  # images, or clips, at a time and process
    workers: int = 0  # processes that load data; 0 loads in this one
    save_every: int = 50  # batches between two saves of what has been seen

    def __post_init__(self) -> None:
        for name in ("size", "batch_size", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit: expected at least 1, got {self.limit}")

    @property
    def crop(self) -> Crop:
        """The same for every image."""
        return Crop(size=self.size, resize=self.size if self.resize else None, place="center")


def evaluate_tokenizer(
    tokenizer: Tokenizer | ConceptTokenizer,
    config: DataSetConfig,
    out: Path,
    *,
    device: str | None = None,
    high: int | None = None,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score reconstructions; writes ``out`` (JSON) and beside it a picture of the worst images.

    Args:
        tokenizer: in eval mode.
        config: what is scored, and on what.
        out: where the scores go. What an interrupted call has seen is kept beside it; the same call goes on with it.
        device: where the networks run; None takes what there is, one of them a process.
        high: leading dimensions of a code that are its semantic part, for "semantic".
        about: more to be written down, of the run.

    Returns:
        What the JSON holds: ``scores`` by name, and what is needed to compare them.
    """
    _check_metrics(config, TOKENIZER_METRICS)
    place, about = Place.here(device), dict(about or {})
    subject = subject_of(tokenizer.to(place.device), config.keep)
    subject.check_size(config.size)
    source = _open(open_source(config.data, config.split), config)
    networks = Networks(config.weights, place.device)
    measures = build_measures(
        config.metrics, config.backbone, networks, subject=subject, classes=len(source.map_labels), high=high
    )
    count = Count()

    def look(batch: Batch) -> None:
        seen = see(subject, batch)
        count.update(len(batch["image"]), len(seen.images), subject.tokens(seen.codes))
        for measure in measures.values():
            measure.update(seen)

    parts = _parts(measures) | {"count": count}
    kept = Kept(_partial(out), "seen", place, _key(config, source, about), parts)
    _run(source, config, look, kept, place)
    scores = _merge(measures, parts)
    tokens, bits = count.tokens / max(1, count.images), subject.bits_per_token
    record = _statement(config, source, count) | {
        "tokens_per_image": tokens,
        "bits_per_token": bits,
        "bits_per_pixel": tokens * bits / config.size**2,
        "weights": _weights(measures),
        **about,
        "scores": scores,
    }
    psnr = measures.get("psnr")
    if place.main and isinstance(psnr, PsnrMeasure):
        picture = out.with_name(f"{out.stem}_worst.png")
        record["worst"] = draw_worst(psnr.psnr, source, config.crop, partial(_show, subject, place.device), picture)
    return _finish(record, out, kept, place)


def evaluate_samples(folder: Path, config: DataSetConfig, out: Path, *, device: str | None = None) -> dict[str, Any]:
    """Score generated images, all that lie in a folder, against a data set; else as :func:`evaluate_tokenizer`."""
    _check_metrics(config, SAMPLE_METRICS)
    place = Place.here(device)
    sides = {
        "real": _open(open_source(config.data, config.split), config),
        # the sampling command keeps its images in a folder of their own
        "fake": _open(AllImages(folder / "images" if (folder / "images").is_dir() else folder), config),
    }
    measures = build_measures(config.metrics, config.backbone, Networks(config.weights, place.device))
    counts = {side: Count() for side in sides}
    parts = _parts(measures) | counts
    for side, source in sides.items():

        def look(batch: Batch, side: str = side) -> None:
            counts[side].update(len(batch["image"]), len(batch["image"]), 0)
            for measure in measures.values():
                assert isinstance(measure, EmbeddingMeasure)
                measure.update_side(side, batch["index"], batch["image"])

        key = _key(config, source, {"real": sides["real"].fingerprint})
        kept = Kept(_partial(out), side, place, key, parts)
        _run(source, config, look, kept, place)
    scores = _merge(measures, parts)
    record = _statement(config, sides["real"], counts["real"]) | {
        "samples": str(folder),
        "generated_images": counts["fake"].images,
        "weights": _weights(measures),
        "scores": scores,
    }
    return _finish(record, out, kept, place)


def see(subject: Subject, batch: Batch) -> Seen:
    """A batch through the tokenizer; the frames of clips one by one."""
    images, maps, index, frames = batch["image"], batch.get("map"), batch["index"], None
    if images.dim() == 5:
        frames = images.shape[1]
        index = (index[:, None] * frames + torch.arange(frames, device=index.device)).flatten()
        images, maps = images.flatten(0, 1), None if maps is None else maps.flatten(0, 1)
    codes, reconstruction = subject(images, index)
    return Seen(index, images, reconstruction, codes, frames, maps)


@torch.no_grad()
def _show(subject: Subject, device: torch.device, image: torch.Tensor, number: int) -> torch.Tensor:  # [3, S, S]
    _, reconstruction = subject(image[None].to(device), torch.tensor([number]))
    return reconstruction[0].cpu()


def _open(source: Source, config: DataSetConfig) -> Source:
    return source if config.limit is None else Limited(source, config.limit)


def _check_metrics(config: DataSetConfig, known: tuple[str, ...]) -> None:
    unknown = [name for name in config.metrics if name not in known]
    if unknown or not config.metrics:
        raise UserError(f"metrics: expected some of {list(known)}, got {unknown or 'none'}")


def _run(source: Source, config: DataSetConfig, look: Any, kept: Kept, place: Place) -> None:
    options = {"batch_size": config.batch_size, "workers": config.workers, "save_every": config.save_every}
    run_pass(source, config.crop, look, kept, place, **options)


def _partial(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


def _key(config: DataSetConfig, source: Source, about: Mapping[str, Any]) -> str:
    """What a pass depends on."""
    options = dataclasses.asdict(config) | {"fingerprint": source.fingerprint, "about": dict(about)}
    for free in ("workers", "save_every"):
        del options[free]
    return json.dumps(options, default=str, sort_keys=True)


def _parts(measures: Mapping[str, Measure]) -> dict[str, Accumulator]:
    return {f"{name}.{part}": value for name, measure in measures.items() for part, value in measure.parts.items()}


def _merge(measures: Mapping[str, Measure], parts: Mapping[str, Accumulator]) -> dict[str, float]:
    """The scores of what all processes have seen."""
    for part in parts.values():
        part.merge_across_processes()
    return {name: value for measure in measures.values() for name, value in measure.compute().items()}


def _weights(measures: Mapping[str, Measure]) -> dict[str, str]:
    """The network behind every score that has one."""
    return {name: measure.weights for measure in measures.values() if measure.weights for name in measure.names}


def _statement(config: DataSetConfig, source: Source, count: Count) -> dict[str, Any]:
    scaled = f"shorter side to {config.size} pixels, bicubic with antialiasing (Pillow)"
    return {
        "set": f"{config.data}, {config.split}",
        "fingerprint": source.fingerprint,
        "images": count.images,
        "skipped": len(source) - count.samples,
        "resize": scaled if config.resize else "none",
        "crop": f"the middle {config.size}x{config.size} pixels",
        "pixels": PIXELS,
        **({} if config.keep is None else {"kept": config.keep}),
        "tool": tool(),
    }


def _finish(record: dict[str, Any], out: Path, kept: Kept, place: Place) -> dict[str, Any]:
    if place.main:
        write_json(out, record)
    place.wait()
    if place.main:
        kept.remove()
    return record
