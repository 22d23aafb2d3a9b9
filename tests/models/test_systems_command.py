"""models.systems: what it trains, scores and records. Oracles: closed forms, the committed results."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models import systems
from models.errors import UserError
from models.report import systems as report
from models.report.blocks import read_block, write_block
from models.training.tokenizer_run import TokenizerRun, replace_stage

Made = tuple[Path, dict]


@pytest.fixture(scope="module")
def made(tiny_config: TokenizerRun, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("systems")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(systems, "POCKET", {"tiny": lambda: replace_stage(tiny_config, steps=2)})
        return folder, systems.run_system("tiny", folder / "tiny", progress=False)


def test_scores_are_those_of_the_held_out_crops(made: Made) -> None:
    folder, entry = made
    seen = systems.look(entry, folder / "tiny", entry["crops"])
    images, decoded = (
        values.double().clamp(-1, 1).numpy() / 2 + 0.5 for values in (seen.images, seen.reconstructions)
    )
    assert entry["psnr"] == pytest.approx(-10 * math.log10(np.square(decoded - images).mean()), abs=1e-3)
    spread = images.var(axis=(2, 3)).mean()  # the error of each crop's own mean
    assert entry["psnr_baseline"] == pytest.approx(-10 * math.log10(spread), abs=1e-3)
    assert 0 < entry["utilization"] <= 1


def test_a_finished_system_is_not_trained_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, entry = made
    config = systems.load_config(folder / "tiny")
    monkeypatch.setattr(systems, "POCKET", {"tiny": lambda: config})
    monkeypatch.setattr(systems, "train", None)  # would raise if called
    assert systems.run_system("tiny", folder / "tiny") == json.loads(json.dumps(entry))
    with pytest.raises(UserError, match="expected a run of tiny as it is now"):
        systems.run_system("tiny", folder / "tiny", seed=1)


@pytest.mark.parametrize("lost", [False, True])
def test_what_does_not_beat_its_baseline_is_said(lost: bool, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, entry = made
    entry = entry | {"psnr": entry["psnr_baseline"] + (0 if lost else 1)}
    monkeypatch.setattr(systems, "POCKET", {"tiny": None})
    monkeypatch.setattr(systems, "run_system", lambda *_, **__: entry)
    monkeypatch.setattr("sys.argv", ["systems", "--out", str(folder)])
    with pytest.raises(UserError, match="no better than the baseline: tiny") if lost else nullcontext():
        systems.main()
    with Image.open(folder / "systems.webp") as picture:
        assert picture.width > 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipes": ("vqgan",)}, "recipes: expected some of vqgan_pocket, .*, got vqgan$"),
        ({"recipes": ("vqgan_pocket",), "record": True}, "record: expected all recipes"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        systems.SystemsConfig(**arguments)


def test_the_readme_shows_the_committed_results() -> None:
    entries = json.loads(report.RESULTS.read_text(encoding="utf-8"))
    assert [entry["recipe"] for entry in entries] == list(systems.POCKET)
    assert read_block(report.README, "systems") == report.block(entries)
    assert all(entry["psnr"] > entry["psnr_baseline"] for entry in entries)


def test_blocks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb\n")
    write_block(page, "x", "new\nlines")
    assert page.read_text() == "a\n<!-- x:begin -->\nnew\nlines\n<!-- x:end -->\nb\n"
    assert read_block(page, "x") == "new\nlines"
    with pytest.raises(ValueError, match="expected <!-- y:begin --> and then <!-- y:end -->, once each"):
        write_block(page, "y", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", systems.POCKET)
def test_pocket_recipes_beat_their_baseline(name: str, tmp_path: Path) -> None:
    """On held-out crops."""
    entry = systems.run_system(name, tmp_path / "run", progress=False)
    assert entry["psnr"] > entry["psnr_baseline"] + 0.5
