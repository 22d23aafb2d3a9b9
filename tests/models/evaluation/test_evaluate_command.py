"""``python -m models.evaluate`` from its command line."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest
import torch
import tyro
from processes import free_port, run_processes, torchrun_variables

from models import command, evaluate

OPTIONS = ("--size", "32", "--split", "train", "--metrics", "psnr", "fd", "codes", "--batch-size", "2")


def call(*arguments: object) -> int:
    return command.run(lambda: tyro.cli(evaluate.main, args=[str(argument) for argument in arguments]))


@pytest.fixture(scope="module")
def record(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("scores") / "scores.json"
    assert call(run, *OPTIONS, "--out", out) == 0
    return json.loads(out.read_text())


def test_it_prints_the_scores_it_writes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(run, "--size", "32", "--split", "train", "--metrics", "psnr") == 0
    shown = capsys.readouterr().out
    written = json.loads((run / "scores.json").read_text())
    assert (written["checkpoint"], written["run"]) == ("step_000003", str(run))
    assert f"{written['scores']['psnr']:.4f}" in shown
    assert "scores.json" in shown


def worker(rank: int, port: int, said: str, arguments: list[str]) -> None:
    """One of two processes as ``torchrun`` starts them, and what it says in a file."""
    os.environ |= torchrun_variables(rank, 2, port)
    torch.set_num_threads(1)
    with open(f"{said}{rank}", "w") as file, contextlib.redirect_stdout(file):
        assert call(*arguments) == 0


@pytest.mark.multiproc
def test_two_processes_find_the_same(run: Path, record: dict, tmp_path: Path) -> None:
    arguments = [str(run), *OPTIONS, "--out", str(tmp_path / "scores.json")]
    run_processes(worker, args=(free_port(), str(tmp_path / "said"), arguments), nprocs=2)
    assert "written to" in (tmp_path / "said0").read_text()
    assert (tmp_path / "said1").read_text() == ""
    found = json.loads((tmp_path / "scores.json").read_text())
    scores, wanted = found.pop("scores"), dict(record)
    for name, value in wanted.pop("scores").items():
        # the same images in other batches: what convolutions give may differ in its last bits
        assert scores[name] == pytest.approx(value, rel=1e-5), name
    worst, expected = found.pop("worst"), wanted.pop("worst")
    assert [entry["name"] for entry in worst] == [entry["name"] for entry in expected]
    assert found == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "psnr"], "error: size: expected pixels per side of the crops, got none"),
        (["--size", "36"], "error: size: expected a multiple of 8 pixels, got 36"),
        (["--size", "0"], "error: size: expected at least 1, got 0"),
        (["--size", "32", "--device", "abacus"], "error: device: expected one that torch can use here, got 'abacus'"),
        (["--size", "32", "--step", "2"], "run: expected a checkpoint at one of the steps [0, 3], got 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_mistakes_are_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert call(run, *options) == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_folders_that_are_no_run_need_a_data_set(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(photo_folder, "--size", "32") == 1
    assert "error: data: expected the data set that generated images" in capsys.readouterr().err
    assert call(tmp_path / "nothing", "--size", "32", "--data", "embedded") == 1
    assert "error: target: expected a run folder or a folder of images, got" in capsys.readouterr().err
    out = tmp_path / "scores.json"
    assert call(photo_folder, "--size", "32", "--data", photo_folder, "--split", "train", "--out", out) == 0
    assert "fd_efficientnet" in json.loads(out.read_text())["scores"]
