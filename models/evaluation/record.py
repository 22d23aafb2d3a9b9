"""How scores are written down: JSON that is whole, a table, and a picture of the worst images. S pixels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from models.data.pixels import to_float, to_image
from models.data.sample import Source
from models.data.transforms import Transform
from models.environment import environment
from models.evaluation.passes import crop_of
from models.metrics.pixel import Psnr

_WORST = 8
_LABEL = 16  # pixels of the line above an image
PIXELS = "float64 in [0, 1], clipped, not rounded to 8 bits"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write all of it or nothing, so that a file that exists is whole; numbers that are not finite become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def tool() -> str:
    """What computed the scores."""
    made_with = environment()
    return f"models.evaluate of vqkernels {made_with['vqkernels']}; PyTorch {made_with['PyTorch']}"


def draw_worst(
    psnr: Psnr,
    source: Source,
    transform: Transform,
    reconstruct: Callable[[torch.Tensor, int], torch.Tensor],  # [3, S, S] and its number -> [3, S, S]
    path: Path,
) -> list[dict[str, Any]]:
    """The images with the lowest PSNR, above their reconstructions; which they are, worst first."""
    values, numbers = psnr.of_images(), psnr.column("index").tolist()
    places = sorted(range(len(values)), key=lambda place: (values[place], place))[:_WORST]
    frames, worst, pairs = _frames(source, transform) if places else 1, [], []
    for place in places:
        sample, frame = divmod(numbers[place], frames)
        crop = crop_of(source, transform, sample)
        image = to_float(torch.from_numpy(crop if crop.ndim == 3 else crop[frame]))  # [3, S, S]
        pairs.append((f"{values[place]:.1f} dB", to_image(image), to_image(reconstruct(image, numbers[place]))))
        entry = {"name": source.name(sample), "psnr": values[place]}
        worst.append(entry | ({"frame": frame} if crop.ndim == 4 else {}))
    if pairs:
        _draw(pairs, path)
    return worst


def print_scores(record: Mapping[str, Any], console: Console) -> None:
    """Scores; what they are of above them, the weights behind them below."""
    console.print(f"{record['set']}: {record['images']} images, {record['crop']}", highlight=False)
    table = Table("score", "value")
    for name, value in record["scores"].items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)
    for weights in dict.fromkeys(record["weights"].values()):
        console.print(weights, style="dim", highlight=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _frames(source: Source, transform: Transform) -> int:
    """Images that one sample stands for."""
    first = next(index for index in range(len(source)) if source.read(index) is not None)
    crop = crop_of(source, transform, first)
    return 1 if crop.ndim == 3 else len(crop)


def _draw(pairs: list[tuple[str, Any, Any]], path: Path) -> None:
    height, width = pairs[0][1].shape[:2]
    picture = Image.new("RGB", (width * len(pairs), 2 * height + _LABEL), "white")
    draw = ImageDraw.Draw(picture)
    for column, (label, original, reconstruction) in enumerate(pairs):
        draw.text((column * width + 2, 2), label, fill="black")
        picture.paste(Image.fromarray(original), (column * width, _LABEL))
        picture.paste(Image.fromarray(reconstruction), (column * width, _LABEL + height))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
