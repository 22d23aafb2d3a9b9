"""Folders of codes and latents as models.extract_codes leaves them, with something in them to learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from models.data.codes import CodeWriter, Manifest
from models.training.prior_data import code_settings, write_codebook

CLASSES = ("a", "b", "c")


def write_codes(
    folder: Path,
    *,
    shape: tuple[int, ...] = (4, 3),
    num_codes: int = 8,
    groups: int = 1,
    counts: tuple[int, int] = (48, 16),
    labels: tuple[str, ...] = CLASSES,
) -> Path:
    """Codes that class and place decide nine times of ten, which neither frequencies nor pairs of neighbours know."""
    random = np.random.default_rng(0)
    usual = random.integers(num_codes, size=(max(len(labels), 1), *shape))

    def draw(label: int) -> np.ndarray:
        return np.where(random.random(shape) < 0.9, usual[label], random.integers(num_codes, size=shape))

    write_codebook(folder, random.normal(size=(groups, num_codes, 2)).astype(np.float32))
    settings = code_settings(num_codes, groups, 2 * groups)
    made: dict[str, Any] = {"kind": "codes", "shape": shape, "num_codes": num_codes, "settings": settings, "views": 2}
    return _write(folder, made, draw, counts, labels)


def write_latents(
    folder: Path,
    *,
    shape: tuple[int, ...] = (2, 4, 4),
    counts: tuple[int, int] = (48, 16),
    labels: tuple[str, ...] = CLASSES,
) -> Path:
    """Latents that are +4 everywhere or -4 everywhere: easily told from noise."""
    random = np.random.default_rng(0)
    write_codebook(folder, random.normal(size=(1, 8, shape[0])).astype(np.float32))
    made: dict[str, Any] = {"kind": "latents", "shape": shape, "settings": code_settings(8, 1, shape[0])}
    return _write(folder, made, lambda _: np.full(shape, random.choice([-4.0, 4.0])), counts, labels)


def _write(folder: Path, made: dict[str, Any], draw: Any, counts: tuple[int, int], labels: tuple[str, ...]) -> Path:
    random = np.random.default_rng(1)
    for split, count in zip(("train", "val"), counts, strict=True):
        manifest = Manifest(**made, tokenizer="made", source=split, count=count, shard_size=20, labels=labels)
        writer = CodeWriter(folder / split, manifest)
        for number in writer.missing():
            index = np.array(manifest.span(number))
            classes = random.integers(max(len(labels), 1), size=len(index))
            values = np.stack([[draw(int(label)) for _ in range(manifest.views)] for label in classes])
            writer.write(number, values, index, classes if labels else None)
    return folder
