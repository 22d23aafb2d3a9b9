"""Build the page: results.json and the pictures beside it in, one HTML file out.

Every score stands in the page as ``<data value="...">`` with the exact value of results.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from models.report.charts import Axis, Chart, Series, line_chart, scatter_chart
from models.report.pictures import CROP, Box, data_uri, load_picture, telling_box
from models.report.results import (
    METRICS,
    MORE_METRICS,
    Cell,
    Results,
    codes_of,
    column,
    finding,
    in_words,
    other_sizes,
    percent,
    score_table,
)

_HERE = Path(__file__).parent
_HERO_CROP = 2 * CROP
_MOST_PHOTOS = 6
# what other commands leave in the folders beside the demo's
_BESIDE = {
    "../claims/claims.html": "The papers' claims, put to the test",
    "../systems/systems.md": "Scores of every pocket tokenizer",
    "../systems/systems.webp": "What they make of held-out crops",
    "../systems/prefixes.webp": "What the first concept tokens and groups make",
    "../systems/classes.webp": "What the tokens of SGC-VQGAN stand for",
    "../pipelines/priors.md": "Scores of every pocket prior",
    "../pipelines/priors.webp": "Samples of them",
    "../pipelines/video.webp": "How the video prior goes on with streets",
}
_CURVES = (
    ("utilization", "Share of the codebook in use", Axis("utilization", form=percent, low=0.0)),
    ("val_psnr", "Reconstruction of held-out crops", Axis("PSNR, dB")),
)


@dataclass(frozen=True)
class Tile:
    """One version of a photo: the original or a reconstruction."""

    name: str
    anchor: str
    full: str  # data URIs
    detail: str
    hero: str
    psnr: Cell | None  # None for the original


@dataclass(frozen=True)
class Section:
    """A held-out photo and its versions, the original first."""

    name: str
    anchor: str
    width: int
    height: int
    tokens: int
    box: Box  # what the details show
    tiles: list[Tile]


def training_charts(tokenizers: Sequence[Results]) -> list[tuple[str, Markup]]:
    """Charts over training steps, with their titles."""
    charts = []
    for key, title, axis in _CURVES:
        lines = []
        for slot, entry in enumerate(tokenizers):
            curve = entry["curves"][key]
            values = [math.nan if value is None else value for value in curve["value"]]
            lines.append(Series(entry["title"], slot, curve["step"], values))
        charts.append((title, line_chart(lines, title=title, x_axis=Axis("training step", margin=0.0), y_axis=axis)))
    return charts


def rank_chart(tokenizers: Sequence[Results], counts: Sequence[np.ndarray]) -> Markup:
    """Share of tokens by code, most used first, both axes logarithmic."""
    lines = []
    for slot, (entry, count) in enumerate(zip(tokenizers, counts, strict=True)):
        used = np.sort(count[count > 0])[::-1]
        # ranks in equal steps of their logarithm: all a logarithmic axis can show
        ranks = np.unique(np.geomspace(1, len(used), 160).round().astype(int)) if len(used) else np.array([], int)
        share = used[ranks - 1] / used.sum()
        lines.append(Series(entry["title"], slot, ranks.tolist(), share.tolist()))
    x_axis = Axis("codes, most used first", log=True, form="{:,.0f}".format)
    y_axis = Axis("share of tokens", log=True, form=lambda value: f"{100 * value:.3g}%")
    return line_chart(lines, title="Share of tokens by code", x_axis=x_axis, y_axis=y_axis)


def photo_section(number: int, photo: Results, tokenizers: Sequence[Results], folder: Path) -> Section:
    """Everything the page shows of held-out photo ``number``."""
    scores = [entry["photos"][number] for entry in tokenizers]
    original = load_picture(folder / photo["file"])
    decoded = [load_picture(folder / score["picture"]) for score in scores]
    psnr = column("psnr", scores)
    box, hero = telling_box(original, decoded, CROP), telling_box(original, decoded, _HERO_CROP)
    names = ["Original", *(entry["title"] for entry in tokenizers)]
    tiles = [
        Tile(
            name=name,
            anchor=f"photo-{number}-{version}",
            full=data_uri(pixels),
            detail=data_uri(box.cut(pixels), lossless=True),
            hero=data_uri(hero.cut(pixels), lossless=True),
            psnr=cell,
        )
        for version, (name, pixels, cell) in enumerate(zip(names, [original, *decoded], [None, *psnr], strict=True))
    ]
    height, width = original.shape[:2]
    return Section(photo["name"], f"photo-{number}", width, height, scores[0]["tokens"], box, tiles)


def prior_pictures(results: Results, folder: Path) -> list[str]:
    """The samples of the prior as data URIs."""
    names = results["prior"]["pictures"] if "prior" in results else []
    return [data_uri(load_picture(folder / name), lossless=True) for name in names]


def prior_slot(results: Results) -> int | None:
    """Which tokenizer's codes the prior learned."""
    recipes = [entry["recipe"] for entry in results["tokenizers"]]
    return recipes.index(results["prior"]["of"]) if "prior" in results else None


def scatters(tokenizers: Sequence[Results], codebooks: Sequence[dict[str, np.ndarray]]) -> list[Chart]:
    """The first group's codes of every tokenizer over its encoder vectors."""
    return [
        scatter_chart(book["codes"], book["counts"][0], book["vectors"], title=f"Codebook of {entry['title']}")
        for entry, book in zip(tokenizers, codebooks, strict=True)
    ]


def render(results: Results, folder: Path) -> str:
    """The page as HTML text; pictures and codebooks are read from ``folder``."""
    tokenizers = results["tokenizers"]
    codebooks = []
    for entry in tokenizers:
        with np.load(folder / entry["codebook"]) as stored:
            codebooks.append(dict(stored))
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(codes_of=codes_of, in_words=in_words)
    return environment.get_template("page.html").render(
        results=results,
        tokenizers=tokenizers,
        finding=finding(tokenizers),
        other_sizes=other_sizes(tokenizers),
        metrics=METRICS,
        scores=score_table(METRICS, tokenizers),
        more_metrics=MORE_METRICS,
        more_scores=score_table(MORE_METRICS, tokenizers),
        utilization=[cell.text for cell in column("utilization", [entry["metrics"] for entry in tokenizers])],
        training_charts=training_charts(tokenizers),
        rank_chart=rank_chart(tokenizers, [book["counts"] for book in codebooks]),
        scatters=scatters(tokenizers, codebooks),
        sections=[
            photo_section(number, photo, tokenizers, folder)
            for number, photo in enumerate(results["photos"][:_MOST_PHOTOS])
        ],
        prior_slot=prior_slot(results),
        prior_pictures=prior_pictures(results, folder),
        beside={link: title for link, title in _BESIDE.items() if (folder / link).exists()},
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
    )


def write_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from ``folder/results.json`` and return its path."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    path = folder / "report.html"
    path.write_text(render(results, folder), encoding="utf-8")
    return path
