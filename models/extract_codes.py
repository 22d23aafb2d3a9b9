"""Codes of a trained tokenizer, for a prior: ``python -m models.extract_codes RUN --data DATA --out FOLDER``.

Writes both sides of the data into ``FOLDER/train`` and ``FOLDER/val``, in shards of the smallest integers that hold
the codes, with the classes and, in ``FOLDER/codebook.safetensors``, the vectors of the codes. ``--kind latents``
writes what the encoder gives before quantization instead. Shards that are whole are not made again; several processes
(``torchrun``) share them. Sources of a few large images, as "embedded", give random crops, others one view of each
image, two, or ten-crops. V views, S pixels, T frames, D code dimension, h w grid, G groups.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from accelerate import PartialState

from models import command
from models.data.codes import CodeWriter, Kind, Manifest
from models.data.loader import Loader
from models.data.part import Mirrored, OneView, Part, TenCrops
from models.data.source import Source, open_source
from models.data.transforms import Crop, Transform
from models.errors import UserError
from models.tokenizers.codec import Codec
from models.tokenizers.concept import ConceptTokenizer
from models.tokenizers.fingerprint import fingerprint
from models.training.classifier_run import ClassifierRun
from models.training.concept_run import ConceptRun
from models.training.prior_data import code_settings, write_codebook
from models.training.prior_run import PriorRun
from models.training.runs import load_codec, load_config

Views = Literal["center", "mirror", "ten"]
Encode = Callable[[torch.Tensor], np.ndarray]  # views [n, V, 3, S, S] to codes or latents [n, V, ...]


class Plan(NamedTuple):
    """What is made of one side of the data."""

    source: Source
    transform: Transform
    count: int  # samples
    batch_size: int


def extract(
    run_dir: Path,
    out: Path,
    *,
    data: str | None = None,
    kind: Kind = "codes",
    image_size: int | None = None,
    views: Views = "center",
    ratios: tuple[float, ...] = (1.1,),
    samples: int | None = None,
    tokens: int | None = None,
    batch_size: int = 32,
    shard_size: int = 1024,
    workers: int = 0,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, int]:
    """Write the shards that are missing; returns how many each side has written. Arguments as of :func:`main`."""
    for name, number in (("samples", samples), ("batch_size", batch_size)):
        if number is not None and number < 1:
            raise UserError(f"{name}: expected at least 1, got {number}")
    for name, number in (("workers", workers), ("seed", seed)):
        if not 0 <= number < 2**63:
            raise UserError(f"{name}: expected at least 0, got {number}")
    if not all(1 <= ratio < math.inf for ratio in ratios):
        raise UserError(f"ratios: expected numbers from 1 on, got {ratios}")
    config = load_config(run_dir)
    if isinstance(config, PriorRun | ClassifierRun):
        raise UserError(f"{run_dir}: expected the run of a tokenizer, got that of a {config.kind}")
    codec = load_codec(run_dir)
    state = PartialState(cpu=not torch.accelerator.is_available())
    codec.tokenizer.to(state.device)
    spec = config.data if data is None else data
    trained = config.encoder.image_size if isinstance(config, ConceptRun) else config.stage.image_size
    size = trained if image_size is None else image_size
    token = 1 if isinstance(codec.tokenizer, ConceptTokenizer) else codec.tokenizer.downsample
    if size < 1 or size % token:
        raise UserError(f"image_size: expected a multiple of {token} pixels, got {size}")
    if shard_size < 1 or shard_size % batch_size:
        raise UserError(f"shard_size: expected a multiple of batch_size {batch_size}, got {shard_size}")
    written = {}
    for split in ("train", "val"):
        source = open_source(spec, split)  # type: ignore[arg-type]
        plan = _plan(source, split, size, views, ratios, samples, batch_size)
        made = {"image_size": size, "views": views, "seed": seed, "tokens": tokens}
        encode = functools.partial(_encode, codec, kind=kind, tokens=tokens)
        manifest = _manifest(codec, encode, plan, kind, shard_size, made)
        writer = CodeWriter(out / split, manifest)
        missing = writer.missing(state.process_index, state.num_processes)
        started, done = time.perf_counter(), 0
        for order, number in enumerate(missing):
            values, index, label = _shard(encode, plan, manifest, number, seed, workers, state.device)
            writer.write(number, values, index, label)
            done += len(index) * manifest.views
            if progress:
                rate = done / (time.perf_counter() - started)
                places = rate * np.prod(manifest.shape if kind == "codes" else manifest.shape[-2:])
                print(
                    f"{split}: shard {order + 1} of {len(missing)}, {rate:.0f} views/s, {places:.0f} tokens/s",
                    file=sys.stderr,
                    flush=True,
                )
        written[split] = len(missing)
    if state.is_main_process:
        codebook = codec.codebook
        if codebook is not None:
            write_codebook(out, codebook.cpu().float().numpy())
    state.wait_for_everyone()
    return written


def _plan(
    source: Source, split: str, size: int, views: Views, ratios: tuple[float, ...], samples: int | None, batch: int
) -> Plan:
    """Random crops of a source of few images, mirrored half of the time; else each image once."""
    if source.drawn:
        if views != "center":
            raise UserError(f"views: expected 'center' for random crops of few images, got '{views}'")
        count = 4096 if samples is None else samples
        count = count if split == "train" else max(count // 8, 1)
        return Plan(source, OneView(transform=Crop(size=size, flip=split == "train")), count, batch)
    if samples is not None and samples < len(source):
        source = Part(source, range(samples))
    middle = Crop(size=size, resize=size, place="center")
    # what is held out is looked at as it is
    held_out = split == "val" or views == "center"
    transform: Transform = OneView(transform=middle) if held_out else Mirrored(transform=middle)
    if views == "ten" and not held_out:
        transform = TenCrops(size=size, ratios=ratios)
    return Plan(source, transform, len(source), batch)


def _manifest(
    codec: Codec, encode: Encode, plan: Plan, kind: Kind, shard_size: int, made: dict[str, Any]
) -> Manifest:
    """Found out on one sample."""
    first = next(_batches(plan, range(1), 0, 0, next(codec.tokenizer.parameters()).device))
    values = encode(first["image"])
    num_codes, groups, dim = codec.table
    return Manifest(
        kind=kind,
        tokenizer=fingerprint(codec.tokenizer),
        source=plan.source.fingerprint,
        shape=values.shape[2:],
        count=plan.count,
        views=values.shape[1],
        num_codes=num_codes if kind == "codes" else None,
        shard_size=shard_size,
        labels=tuple(plan.source.labels),
        settings={**code_settings(num_codes, groups, dim), **made},
    )


def _shard(
    encode: Encode, plan: Plan, manifest: Manifest, number: int, seed: int, workers: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:  # values [n, V, ...], index [n], labels [n]
    span = manifest.span(number)
    values, index, labels = [], [], []
    for batch in _batches(plan, span, seed, workers, device):
        values.append(encode(batch["image"]))
        index.append(batch["position"].cpu().numpy())
        if manifest.labels:
            labels.append(batch["label"].cpu().numpy())
    if not values:
        return np.empty((0, manifest.views, *manifest.shape)), np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate(values), np.concatenate(index), np.concatenate(labels) if labels else None


def _batches(
    plan: Plan, span: range, seed: int, workers: int, device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of the samples of a shard, and at which ``position`` among all samples they are."""
    options: dict[str, Any] = {"batch_size": plan.batch_size, "seed": seed, "workers": workers, "device": device}
    if not plan.source.drawn:
        with Loader(Part(plan.source, span), plan.transform, shuffle=False, **options) as loader:
            for batch in loader:
                yield {**batch, "position": batch["index"] + span.start}
        return
    # shards begin where batches do, so that each sample is the same whatever the shards
    with Loader(plan.source, plan.transform, start_step=span.start // plan.batch_size, **options) as loader:
        for start, batch in zip(range(span.start, span.stop, plan.batch_size), loader, strict=False):
            kept = min(plan.batch_size, span.stop - start)
            cut = {name: tensor[:kept] for name, tensor in batch.items()}
            yield {**cut, "position": torch.arange(start, start + kept)}


@torch.no_grad()
def _encode(codec: Codec, images: torch.Tensor, *, kind: Kind, tokens: int | None) -> np.ndarray:
    """Views ``[n, V, 3, S, S]``, of clips ``[n, V, T, 3, S, S]``, to codes or latents ``[n, V, ...]``."""
    clips = images.ndim == 6
    if clips and kind == "latents":
        raise UserError("kind: expected 'codes' of clips, got 'latents'")
    flat = images.flatten(0, images.ndim - 4)
    result = codec.codes(flat) if kind == "codes" else codec.latents(flat)
    if tokens is not None:
        length = codec.tokenizer.length if isinstance(codec.tokenizer, ConceptTokenizer) else 0
        if not 1 <= tokens <= length:
            expected = f"1 to {length}" if length else "none from a tokenizer of grids"
            raise UserError(f"tokens: expected {expected}, got {tokens}")
        result = result[:, :, :tokens] if kind == "codes" else result[..., :tokens]
    if kind == "latents" and not bool(result.isfinite().all()):
        raise UserError("latents: expected finite numbers, got others; the tokenizer is broken")
    return result.unflatten(0, images.shape[: images.ndim - 3]).cpu().numpy()


def main(
    run_dir: Annotated[Path, tyro.conf.Positional],
    out: Path,
    data: str | None = None,
    kind: Kind = "codes",
    image_size: int | None = None,
    views: Views = "center",
    ratios: tuple[float, ...] = (1.1,),
    samples: int | None = None,
    tokens: int | None = None,
    batch_size: int = 32,
    shard_size: int = 1024,
    workers: int = 0,
    seed: int = 0,
) -> None:
    """Write codes or latents of images, for training a prior.

    Args:
        run_dir: folder of a tokenizer's run.
        out: folder for the shards, with ``train`` and ``val`` in it.
        data: what to encode, as --data of models.train_tokenizer; the tokenizer's own data by default.
        kind: codes, or latents: encoder outputs before quantization.
        image_size: pixels per side; those of the tokenizer's training by default.
        views: of training images: the middle, the middle and its mirror image, or ten-crops.
        ratios: sides of the square that ten-crops are taken from, over the crop's; ten views for each.
        samples: random crops of a source of few images (4096), an eighth as many held out; of others the first ones.
        tokens: keep the first ones of a concept tokenizer (SEMANTICIST's prior: 32); all by default.
        batch_size: images at a time.
        shard_size: images per shard.
        workers: processes that load data; 0 loads in this process.
        seed: of random crops.
    """
    written = extract(
        run_dir,
        out,
        data=data,
        kind=kind,
        image_size=image_size,
        views=views,
        ratios=ratios,
        samples=samples,
        tokens=tokens,
        batch_size=batch_size,
        shard_size=shard_size,
        workers=workers,
        seed=seed,
    )
    PartialState().print(f"{out}: wrote {written['train']} + {written['val']} shards")


if __name__ == "__main__":
    sys.exit(command.run(lambda: tyro.cli(main)))
