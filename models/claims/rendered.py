"""Street scenes as files: rendered once, for many runs that train on them.

FOLDER/images/{train,val}/X.png  FOLDER/maps/{train,val}/X.png      "maps:FOLDER"
FOLDER/{train,val}/CLIP/FRAME.png                                   "video:FOLDER?frames=T"
FOLDER/{train,val}/WEATHER/X.png                                    "FOLDER", of "classes:scenes:..."
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from models.data.source import open_source


def rendered(spec: str, folder: Path) -> str:
    """The spec of the same scenes as files below ``folder``, which are made if they are not there; else ``spec``.

    A folder that exists is whole.
    """
    by_class, scenes = spec.startswith("classes:"), spec.removeprefix("classes:")
    if not scenes.startswith("scenes"):
        return spec
    first = open_source(scenes, "train").read(0)
    assert first is not None
    frames = 1 if first.image.ndim == 3 else len(first.image)
    place = folder / f"scenes-{hashlib.sha256(spec.encode()).hexdigest()[:12]}"
    if not place.exists():
        partial = place.with_name(f".{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for split in ("train", "val"):
            source = open_source(scenes, split)  # type: ignore[arg-type]
            for index in range(len(source)):
                sample = source.read(index)
                assert sample is not None
                if by_class:
                    assert sample.label is not None
                    _save(partial / split / source.labels[sample.label] / f"{index:05d}.png", sample.image)
                elif frames == 1:
                    assert sample.map is not None
                    void = np.where(sample.map < 0, 255, sample.map).astype(np.uint8)
                    _save(partial / "images" / split / f"{index:05d}.png", sample.image)
                    _save(partial / "maps" / split / f"{index:05d}.png", void)
                else:
                    for number, frame in enumerate(sample.image):
                        _save(partial / split / f"{index:05d}" / f"{number:02d}.png", frame)
        partial.replace(place)
    if by_class:
        return str(place)
    return f"maps:{place}" if frames == 1 else f"video:{place}?frames={frames}"


def _save(path: Path, pixels: np.ndarray) -> None:  # [H, W, 3] or [H, W] uint8
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
