"""Small JPEGs in class folders, to test loading: ``python tests/tools/make_jpegs.py FOLDER --count 50000``.

Not in the suite's own files: 50,000 of them are 130 MB and take half a minute to make.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image

_PATTERNS = 64  # pictures that differ; the others are these with another number written into them


def make_jpegs(folder: Path, count: int, size: int = 64, classes: int = 100) -> None:
    """Write ``count`` files ``class_000/00000000.jpg``, ...; each is of another content."""
    random = np.random.default_rng(0)
    row, column = np.mgrid[:size, :size] / size
    patterns = []
    for _ in range(_PATTERNS):
        waves = random.uniform(2, 20, (3, 2)), random.uniform(0, 6, 3)
        planes = [np.sin(down * row + across * column + begin) for (down, across), begin in zip(*waves, strict=True)]
        noise = random.normal(0, 8, (size, size, 3))
        patterns.append(np.clip(128 + 90 * np.stack(planes, axis=2) + noise, 0, 255).astype(np.uint8))
    for number in range(classes):
        (folder / f"class_{number:03d}").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = patterns[number % _PATTERNS].copy()
        image[:8, :8] = number * 37 % 256
        file = io.BytesIO()
        Image.fromarray(image).save(file, "jpeg", quality=80)
        (folder / f"class_{number % classes:03d}" / f"{number:08d}.jpg").write_bytes(file.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="made if it is not there")
    parser.add_argument("--count", type=int, default=50_000, help="files (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="pixels per side (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=100, help="folders (default: %(default)s)")
    arguments = parser.parse_args()
    make_jpegs(arguments.folder, arguments.count, arguments.size, arguments.classes)


if __name__ == "__main__":
    main()
