"""A demo of a few steps from end to end: the page against its results, the results against what the runs left."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from report_page import Page, decode
from rich.console import Console

from models import demo, evaluate
from models.demo import CONTENDERS, PRIOR, Board, DemoConfig, configs, prior_config, run, summary
from models.errors import UserError
from models.report.results import METRICS, MORE_METRICS
from models.training.run_log import read_metrics

STEPS = 4
TIMINGS = {"step_ms", "quantizer_share"}


def quiet() -> Console:
    return Console(file=io.StringIO(), width=80)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven pieces of one photograph, the tenth of which is held out."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(11):
        piece = skimage.data.astronaut()[30 * number : 30 * number + 70, 100:202]
        Image.fromarray(piece).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("demo")
    config = DemoConfig(out=out, steps=STEPS, prior_steps=2, num_codes=32, data=str(photos))
    run(config, quiet())
    return config.out


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_page_shows_the_results(finished: Path) -> None:
    page = Page((finished / "report.html").read_text(encoding="utf-8"))
    tokenizers = results_of(finished)["tokenizers"]
    assert [entry["recipe"] for entry in tokenizers] == [contender.recipe for contender in CONTENDERS]
    for entry in tokenizers:
        for metric in METRICS + MORE_METRICS:
            value, text, _ = page.scores[entry["recipe"], metric.key]
            assert float(value) == entry["metrics"][metric.key]
            assert text == metric.form(entry["metrics"][metric.key])
    for contender in CONTENDERS:
        assert contender.title in page.text
    versions = len(CONTENDERS) + 1
    shapes = [decode(source).shape for source in page.sources]
    assert shapes[2 * versions :] == [(70, 102, 3)] * versions + [(64, 64, 3)] * demo._SAMPLES
    last = read_metrics(finished / PRIOR)[-1]
    assert {name: float(value) for name, value in page.prior.items()} == {
        name: last[name] for name in ("val_nll", "val_unigram_ratio", "val_bigram_ratio")
    }


def test_scores_are_those_of_the_pictures(finished: Path) -> None:
    results = results_of(finished)
    (photo,) = results["photos"]
    original = np.asarray(Image.open(finished / photo["file"])) / 255
    for entry in results["tokenizers"]:
        (score,) = entry["photos"]
        decoded = np.asarray(Image.open(finished / score["picture"])) / 255
        # rounding to 8 bits moves every value, and so the root of the mean square, by at most half a level
        error, half_a_level = np.sqrt(np.mean((original - decoded) ** 2)), 0.5 / 255
        low, high = (-20 * np.log10(error + sign * half_a_level) for sign in (1, -1))
        assert low <= score["psnr"] <= high
        assert entry["metrics"]["psnr"] == score["psnr"]  # the mean of one photo
        assert score["tokens"] == 9 * 13


def test_runs_differ_in_the_quantizer_alone() -> None:
    trainings = configs(DemoConfig(steps=7, num_codes=64, seed=3))
    first, *others = trainings.values()
    for config in others:
        assert config.network == first.network
        assert (config.steps, config.seed, config.stage.image_size, config.stage.batch_size) == (7, 3, 64, 32)
        assert config.quantizer != first.quantizer
        assert config.quantizer.num_codes * config.quantizer.groups == 64


@pytest.mark.slow
def test_interrupted_demo_ends_with_the_same_numbers(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = results_of(finished)["settings"]
    config = DemoConfig(out=tmp_path, **settings)
    scored = []

    def killed_at_the_third(run_dir: Path) -> evaluate.Evaluation:
        scored.append(run_dir.name)
        if len(scored) == 3:
            raise KeyboardInterrupt
        return evaluate.evaluate(run_dir)

    with monkeypatch.context() as patch:
        patch.setattr(demo, "evaluate", killed_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            run(config, quiet())
    assert not (tmp_path / "results.json").exists()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "patch_fc").rglob("*") if path.is_file()}
    run(config, quiet())
    assert {path: path.stat().st_mtime_ns for path in done} == done

    for ours, unbroken in zip(results_of(tmp_path)["tokenizers"], results_of(finished)["tokenizers"], strict=True):
        assert {key: value for key, value in ours["metrics"].items() if key not in TIMINGS} == {
            key: value for key, value in unbroken["metrics"].items() if key not in TIMINGS
        }
    assert "resuming" in results_of(tmp_path)["environment"]["Time"]


def test_finished_demo_only_writes_the_page_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "train", pytest.fail)
    monkeypatch.setattr(demo, "train_prior", pytest.fail)
    before = (finished / "results.json").read_bytes()
    config = DemoConfig(out=finished, **results_of(finished)["settings"])
    assert run(config, quiet()) == finished / "report.html"
    assert (finished / "results.json").read_bytes() == before


def test_other_settings_are_refused(finished: Path) -> None:
    settings = {**results_of(finished)["settings"], "seed": 1}
    with pytest.raises(UserError, match=r"holds a demo with other settings \(seed 0 / 1\)"):
        run(DemoConfig(out=finished, **settings), quiet())
    settings |= {"seed": 0, "prior_steps": 3}
    with pytest.raises(UserError, match=r"holds a demo with other settings \(stage.steps 2 / 3\)"):
        run(DemoConfig(out=finished, **settings), quiet())


def test_restart_removes_what_a_demo_wrote_and_nothing_else(tmp_path: Path) -> None:
    wrote = ("patch_fc/config.json", "prior/config.json", "codes/codebook.safetensors", "originals/photo_0.png")
    for name in (*wrote, "results.json", "report.html", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    demo._remove_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_terminal_summary_fits_eighty_columns(finished: Path) -> None:
    console = quiet()
    results = results_of(finished)
    console.print(summary(results))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert shown.split()[1 : len(METRICS) + 1] == [metric.name for metric in METRICS]  # none is cut short
    for entry in results["tokenizers"]:
        (line,) = (line for line in shown.splitlines() if line.startswith(entry["title"]))
        assert line.removeprefix(entry["title"]).split() == [
            metric.form(entry["metrics"][metric.key]) for metric in METRICS
        ]


def test_bars_follow_the_metrics_files(finished: Path, tmp_path: Path) -> None:
    config = DemoConfig(steps=2 * STEPS, prior_steps=5, num_codes=32)
    trainings = {**configs(config), PRIOR: prior_config(config)}
    (tmp_path / "patch_fc").mkdir()
    shutil.copy(finished / "patch_fc" / "metrics.jsonl", tmp_path / "patch_fc")
    board = Board(trainings, tmp_path, Console(file=io.StringIO(), force_terminal=True))
    bars = {task.description: task for task in board.tasks}
    assert (bars["VQGAN-FC"].completed, bars["All"].completed) == (STEPS, STEPS)  # from an earlier session
    with board.following("patch_ema"):
        shutil.copytree(finished / "patch_ema", tmp_path / "patch_ema")
        list(board.get_renderables())
        assert (bars["VQGAN-EMA"].completed, bars["All"].completed) == (STEPS, 2 * STEPS)
    assert bars["CVQ"].completed == 0
    with board.following(PRIOR):
        shutil.copytree(finished / PRIOR, tmp_path / PRIOR)
        list(board.get_renderables())
        assert bars["Prior"].completed == 2
        assert bars["Prior"].fields["text"].endswith(" nats a code")
    assert bars["All"].total == 2 * STEPS * len(CONTENDERS) + 5


def test_evaluate_prints_what_it_writes(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main(finished / "patch_lc")
    shown = capsys.readouterr().out
    written = json.loads((finished / "patch_lc" / "evaluation.json").read_text())
    assert f"{written['psnr']:.2f}" in shown
    assert f"{written['utilization_train']:.1%}" in shown
