"""Street scenes, and tiles of photographs, as files: made once, for many runs that train on them.

FOLDER/images/{train,val}/X.png  FOLDER/maps/{train,val}/X.png      "maps:FOLDER"; of "pictures:embedded"
FOLDER/{train,val}/CLIP/FRAME.png                                   "video:FOLDER?frames=T"
FOLDER/{train,val}/WEATHER/X.png                                    "FOLDER", of "classes:scenes:..."
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from models.data.photos import embedded_photos
from models.data.sample import SplitName
from models.data.source import open_source
from models.training.jobs import Job, side_by_side

PICTURES = "pictures:embedded"  # tiles of the photographs, each labelled with the number of its photograph
_TILE = 64  # pixels per side
_TILES = {"train": 100, "val": 20}  # of each photograph: of its left three quarters, of its right quarter
_PART = 64  # scenes that a process draws at a time
_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(bar_width=10),
    TaskProgressColumn(show_speed=True),
    TimeRemainingColumn(compact=True),
)


def rendered(spec: str, folder: Path, processes: int = 1) -> str:
    """The spec of the same scenes or tiles as files below ``folder``, made if they are not there; else ``spec``.

    A folder that exists is whole; scenes are drawn by so many processes.
    """
    if spec == PICTURES:
        return _labelled_tiles(folder)
    by_class, scenes = spec.startswith("classes:"), spec.removeprefix("classes:")
    if not scenes.startswith("scenes"):
        return spec
    frames = _frames(scenes)
    place = folder / f"scenes-{hashlib.sha256(spec.encode()).hexdigest()[:12]}"
    if not place.exists():
        partial = place.with_name(f".{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _draw_all(scenes, partial, by_class, processes)
        partial.replace(place)
    if by_class:
        return str(place)
    return f"maps:{place}" if frames == 1 else f"video:{place}?frames={frames}"


def _frames(scenes: str) -> int:
    first = open_source(scenes, "train").read(0)
    assert first is not None
    return 1 if first.image.ndim == 3 else len(first.image)


def _draw_all(scenes: str, place: Path, by_class: bool, processes: int) -> None:
    """Draw the scenes of both splits, a part at a time."""
    splits: tuple[SplitName, ...] = ("train", "val")
    parts = [
        (scenes, place, by_class, split, first)
        for split in splits
        for first in range(0, len(open_source(scenes, split)), _PART)
    ]
    console = Console(stderr=True)
    with Progress(*_COLUMNS, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"drawing {scenes}", total=len(parts))
        if processes == 1:
            for part in parts:
                _draw_part(*part)
                bar.advance(task)
            return
        jobs = [Job(name=f"{part[3]} {part[4]}", call=_draw_part, arguments=part, makes=set) for part in parts]
        for _ in side_by_side(jobs, processes):
            bar.advance(task)


def _draw_part(scenes: str, place: Path, by_class: bool, split: SplitName, first: int) -> None:
    source = open_source(scenes, split)
    for index in range(first, min(first + _PART, len(source))):
        sample = source.read(index)
        assert sample is not None
        if by_class:
            assert sample.label is not None
            _save(place / split / source.labels[sample.label] / f"{index:05d}.png", sample.image)
        elif sample.image.ndim == 3:
            assert sample.map is not None
            void = np.where(sample.map < 0, 255, sample.map).astype(np.uint8)
            _save(place / "images" / split / f"{index:05d}.png", sample.image)
            _save(place / "maps" / split / f"{index:05d}.png", void)
        else:
            for number, frame in enumerate(sample.image):
                _save(place / split / f"{index:05d}" / f"{number:02d}.png", frame)


def _labelled_tiles(folder: Path) -> str:
    place = folder / f"pictures-{_TILE}-{_TILES['train']}-{_TILES['val']}"
    if not place.exists():
        partial = place.with_name(f".{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for label, photo in enumerate(embedded_photos()):
            random, border = np.random.default_rng(label), photo.image.shape[1] * 3 // 4
            for split, side in (("train", photo.image[:, :border]), ("val", photo.image[:, border:])):
                for number in range(_TILES[split]):
                    top, left = (random.integers(length - _TILE + 1) for length in side.shape[:2])
                    name = f"{split}/{label:02d}-{number:03d}.png"
                    _save(partial / "images" / name, side[top : top + _TILE, left : left + _TILE])
                    _save(partial / "maps" / name, np.full((_TILE, _TILE), label, np.uint8))
        partial.replace(place)
    return f"maps:{place}"


def _save(path: Path, pixels: np.ndarray) -> None:  # [H, W, 3] or [H, W] uint8
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
