"""The page, parsed back: numbers against results.json, pictures decoded, dashes where nothing was measured."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_page import Page, decode, without_pictures

from models.report import METRICS, draw_readme_picture, finding, write_report
from models.report.charts import LABEL_GAP, USAGE_LEVELS, Axis, Series, line_chart, scatter_chart, usage_level
from models.report.charts import _spread as spread
from models.report.pictures import telling_box
from models.report.results import MISSING, MORE_METRICS, percent

RECIPES = ("one", "two", "three")


def write_demo(folder: Path, **metrics: list[float | None]) -> dict[str, Any]:
    """A demo of three made-up tokenizers and two small photos; ``metrics`` replaces columns."""
    random = np.random.default_rng(0)
    columns = {metric.key: [1.5 + index for index in range(3)] for metric in METRICS + MORE_METRICS}
    columns |= {"bits": [4.0, 4.0, 8.0], "utilization": [0.005, 0.5, 1.0], **metrics}
    photos = []
    for number, shape in enumerate(((40, 56, 3), (80, 96, 3))):
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"original_{number}.png")
        photos.append({"name": f"photo {number}", "file": f"original_{number}.png"})
    tokenizers = []
    for index, recipe in enumerate(RECIPES):
        groups = 2 if recipe == "three" else 1
        counts = random.integers(0, 3, (groups, 16))
        np.savez(
            folder / f"{recipe}.npz",
            counts=counts,
            codes=random.standard_normal((16, 2)),
            vectors=random.standard_normal((50, 2)),
        )
        scores = []
        for number, photo in enumerate(photos):
            with Image.open(folder / photo["file"]) as original:
                noisy = np.asarray(original) // (index + 2)
            Image.fromarray(noisy).save(folder / f"{recipe}_{number}.png")
            picture = f"{recipe}_{number}.png"
            scores.append({"name": photo["name"], "psnr": 20.0 + index, "tokens": 35, "picture": picture})
        tokenizers.append(
            {
                "recipe": recipe,
                "title": f"VQGAN-{recipe}",
                "description": "made up <for a test>",
                "groups": groups,
                "num_codes": 16,
                "metrics": {key: column[index] for key, column in columns.items()},
                "photos": scores,
                "codebook": f"{recipe}.npz",
                "curves": {
                    "utilization": {"step": [1, 2, 3], "value": [0.1, None, 0.3]},
                    "val_psnr": {"step": [1], "value": [15.0]},
                },
            }
        )
    sample = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    sample.save(folder / "sample.png")
    results = {
        "settings": {"steps": 3, "prior_steps": 2, "num_codes": 16},
        "patch_size": 8,
        "photos": photos,
        "training_photos": ["a", "b"],
        "tokenizers": tokenizers,
        "prior": {
            "of": "two",
            "metrics": {"val_nll": 4.125, "val_unigram_ratio": 0.75, "val_bigram_ratio": None},
            "pictures": ["sample.png"] * 2,
        },
        "environment": {"Command": "python -m models.demo", "PyTorch": "2"},
    }
    (folder / "results.json").write_text(json.dumps(results))
    return results


def read_page(folder: Path) -> tuple[str, Page]:
    text = write_report(folder).read_text(encoding="utf-8")
    return text, Page(text)


def test_every_score_stands_on_the_page(tmp_path: Path) -> None:
    results = write_demo(tmp_path, psnr=[21.23456789, 19.0, 25.5])
    _, page = read_page(tmp_path)
    assert len(page.scores) == len(RECIPES) * len(METRICS + MORE_METRICS)
    for entry in results["tokenizers"]:
        for metric in METRICS + MORE_METRICS:
            value, text, _ = page.scores[entry["recipe"], metric.key]
            assert float(value) == entry["metrics"][metric.key]
            assert text == metric.form(entry["metrics"][metric.key])
    # photo by photo, all quantizers of one after the other
    assert [float(value) for value in page.photo_values] == [20.0, 21.0, 22.0] * 2


def test_best_is_marked_in_the_right_direction(tmp_path: Path) -> None:
    write_demo(tmp_path, psnr=[20.001, 20.004, 19.0])
    _, page = read_page(tmp_path)
    marked = {(recipe, key) for (recipe, key), (_, _, best) in page.scores.items() if best}
    assert {recipe for recipe, key in marked if key == "ssim"} == {"three"}
    assert {recipe for recipe, key in marked if key == "step_ms"} == {"one"}
    assert {recipe for recipe, key in marked if key == "psnr"} == {"one", "two"}  # equal in the digits shown
    assert not {recipe for recipe, key in marked if key == "bits"}


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_what_was_not_measured_is_a_dash_and_never_best(tmp_path: Path, missing: float | None) -> None:
    write_demo(tmp_path, psnr=[missing, 19.0, 18.0], ssim=[missing] * 3, utilization=[missing, 0.1, 0.2])
    text, page = read_page(tmp_path)
    assert page.scores["one", "psnr"] == ("", MISSING, False)
    assert page.scores["two", "psnr"][2]
    assert {page.scores[recipe, "ssim"] for recipe in RECIPES} == {("", MISSING, False)}
    assert not re.search(r"\b(nan|inf|None)\b", without_pictures(text))


def test_page_is_self_contained_and_its_pictures_decode(tmp_path: Path) -> None:
    results = write_demo(tmp_path)
    text, page = read_page(tmp_path)
    assert "://" not in without_pictures(text)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    versions = len(RECIPES) + 1
    # the opening strip, details, wholes, samples
    assert len(page.sources) == versions * (1 + 2 * len(results["photos"])) + 2
    assert decode(page.sources[-3]).shape == (80, 96, 3)
    assert decode(page.sources[-1]).shape == (16, 16, 3)
    for source in page.sources:
        decode(source)


def test_the_prior_stands_on_the_page(tmp_path: Path) -> None:
    results = write_demo(tmp_path)
    text, page = read_page(tmp_path)
    assert page.prior == {"val_nll": "4.125", "val_unigram_ratio": "0.75"}
    assert re.search(r"2 steps which code of .*VQGAN-two", text)
    assert "These two images" in page.text
    assert f"and {MISSING} of what counting pairs" in page.text
    del results["prior"]  # a demo of an earlier version
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert "Images that never were" not in read_page(tmp_path)[1].text


def test_page_links_what_lies_beside_it(tmp_path: Path) -> None:
    demo = tmp_path / "demo"
    demo.mkdir()
    write_demo(demo)
    for name in ("claims/claims.html", "systems/systems.webp"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    _, page = read_page(demo)
    assert [link for link in page.links if not link.startswith("#")] == [
        "../claims/claims.html",
        "../systems/systems.webp",
    ]


def test_page_shows_a_few_of_many_photos(tmp_path: Path) -> None:
    results = write_demo(tmp_path)
    for entry in (results, *results["tokenizers"]):
        entry["photos"] = entry["photos"] * 4
    (tmp_path / "results.json").write_text(json.dumps(results))
    _, page = read_page(tmp_path)
    assert "These are the first 6 of 8." in page.text
    assert len(page.photo_values) == 6 * len(RECIPES)


def test_text_from_results_is_escaped(tmp_path: Path) -> None:
    write_demo(tmp_path)
    text, _ = read_page(tmp_path)
    assert "made up &lt;for a test&gt;" in text


def tokenizer(title: str, psnr: float | None, utilization: float | None, bits: float = 12.0) -> dict[str, Any]:
    metrics = {"psnr": psnr, "utilization": utilization, "bits": bits}
    return {"recipe": title, "title": title, "metrics": metrics}


@pytest.mark.parametrize(
    ("entries", "wanted"),
    [
        ([], "No tokenizer has been scored yet."),
        ([("A", None, 0.5)], "No tokenizer has been scored yet."),
        ([("A", 20.0, 0.5)], "A reconstructs unseen photos best: 20.0 dB."),
        ([("A", 20.0, 0.9), ("B", 19.0, 0.04)], "best: 20.0 dB with 90% of its codes in use, against 4.0% for B."),
        ([("A", 20.0, 0.1), ("B", 19.0, 0.4)], "though it uses the smallest share of its codes, 10%."),
        (
            [("A", 20.0, 0.4), ("B", 19.0, 0.1), ("C", 18.0, 0.9)],
            "with 40% of its codes in use; C uses most of them, 90%.",
        ),
        ([("A", 20.0, 0.9), ("B", 19.0, 0.5), ("G", 30.0, 1.0, 40.0)], "At 12 bits per patch, A reconstructs"),
    ],
)
def test_headline_says_what_the_numbers_say(entries: list[tuple[Any, ...]], wanted: str) -> None:
    sentence = finding([tokenizer(*entry) for entry in entries]).replace("\N{NO-BREAK SPACE}", " ")
    assert wanted in sentence


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0%"), (0.0004, "0.0%"), (0.0994, "9.9%"), (0.5, "50%"), (1, "100%")]
)
def test_percent(value: float, text: str) -> None:
    assert percent(value) == text


def test_line_is_interrupted_where_nothing_was_measured() -> None:
    chart = line_chart(
        [Series("a", 0, [1, 2, 3, 4], [1.0, math.nan, 2.0, 3.0])], title="t", x_axis=Axis("x"), y_axis=Axis("y")
    )
    (path,) = re.findall(r'class="line" d="([^"]*)"', chart)
    assert path.count("M") == 2
    assert path.count("L") == 1


def test_chart_without_data_says_so() -> None:
    chart = line_chart([Series("a", 0, [1], [math.nan])], title="Loss", x_axis=Axis("x"), y_axis=Axis("y"))
    assert chart == '<p class="empty">Loss: nothing was measured.</p>'


@pytest.mark.parametrize(
    ("axis", "ends", "ticks"),
    [
        (Axis("linear"), (0.0, 1.0), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (Axis("linear"), (-3.0, 18.0), [0.0, 5.0, 10.0, 15.0]),
        (Axis("log", log=True), (0.3, 3.5), [10.0, 100.0, 1000.0]),
    ],
)
def test_ticks_are_round(axis: Axis, ends: tuple[float, float], ticks: list[float]) -> None:
    assert axis.ticks(*ends, 5) == pytest.approx(ticks)


def test_labels_keep_their_distance_and_their_order() -> None:
    wanted = [50.0, 52.0, 51.0, 10.0, 99.0]
    placed = spread(wanted, 0.0, 100.0)
    assert np.argsort(placed).tolist() == np.argsort(wanted).tolist()
    assert np.diff(np.sort(placed)).min() >= LABEL_GAP
    assert min(placed) >= 0
    assert max(placed) <= 100


def test_usage_levels_start_at_unused() -> None:
    level = usage_level(np.array([0, 1, 10, 1000]))
    assert level[0] == 0
    assert level[1] >= 1
    assert level[-1] == USAGE_LEVELS
    assert (np.diff(level) >= 0).all()
    assert not usage_level(np.zeros(4, int)).any()


def test_scatter_draws_codes_inside_its_frame_and_counts_the_others() -> None:
    vectors = np.random.default_rng(0).standard_normal((500, 2))
    codes = np.array([[0.0, 0.0], [100.0, 0.0], [0.0, -100.0]])
    chart = scatter_chart(codes, np.array([5, 0, 0]), vectors, title="t")
    assert chart.outside == 2
    dots = re.findall(r'class="dots u(\d)" d="([^"]*)"', chart.svg)
    assert [(level, path.count("M")) for level, path in dots] == [(str(USAGE_LEVELS), 1)]


def test_telling_box_is_where_reconstructions_of_an_edge_disagree() -> None:
    original = np.full((60, 90, 3), 128, np.uint8)
    original[40:50, 20:30:2] = original[40:50, 70:80:2] = 0  # two places with edges
    other = original.copy()
    other[40:50, 70:80] = 255  # one of them is reconstructed differently
    other[0:10, 0:10] = 255  # and so is a place without edges
    box = telling_box(original, [original, other], 10)
    assert tuple(box) == (40, 70, 10, 10)
    assert (box.cut(other) == 255).all()


def test_telling_box_of_a_photo_smaller_than_it() -> None:
    photo = np.zeros((5, 7, 3), np.uint8)
    assert telling_box(photo, [photo], 10) == (0, 0, 5, 7)


def test_readme_picture(tmp_path: Path) -> None:
    write_demo(tmp_path)
    path = tmp_path / "pictures" / "demo.webp"
    draw_readme_picture(tmp_path, path)
    with Image.open(path) as picture:
        assert picture.format == "WEBP"
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 100
