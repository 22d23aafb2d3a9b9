"""Street scenes as files: rendered once, for many runs that train on them.

FOLDER/images/{train,val}/X.png  FOLDER/maps/{train,val}/X.png      "maps:FOLDER"
FOLDER/{train,val}/CLIP/FRAME.png                                   "video:FOLDER?frames=T"
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
    if not spec.startswith("scenes"):
        return spec
    train = open_source(spec, "train")
    first = train.read(0)
    assert first is not None
    frames = 1 if first.image.ndim == 3 else len(first.image)
    place = folder / f"scenes-{hashlib.sha256(spec.encode()).hexdigest()[:12]}"
    if not place.exists():
        partial = place.with_name(f".{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for split in ("train", "val"):
            source = open_source(spec, split)  # type: ignore[arg-type]
            for index in range(len(source)):
                sample = source.read(index)
                assert sample is not None
                if frames == 1:
                    assert sample.map is not None
                    void = np.where(sample.map < 0, 255, sample.map).astype(np.uint8)
                    _save(partial / "images" / split / f"{index:05d}.png", sample.image)
                    _save(partial / "maps" / split / f"{index:05d}.png", void)
                else:
                    for number, frame in enumerate(sample.image):
                        _save(partial / split / f"{index:05d}" / f"{number:02d}.png", frame)
        partial.replace(place)
    return f"maps:{place}" if frames == 1 else f"video:{place}?frames={frames}"


def _save(path: Path, pixels: np.ndarray) -> None:  # [H, W, 3] or [H, W] uint8
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
