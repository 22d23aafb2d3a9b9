"""``python -m vqkernels.kmeans`` with levels, bounded clusters, labels and given centroids. Oracle: the functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import vqkernels
from vqkernels.kmeans import command
from vqkernels.kmeans.command import main
from vqkernels.testing import assert_bitwise_equal

ROWS = np.random.default_rng(0).standard_normal((120, 4)).astype(np.float32)
ROWS[5, 1] = np.nan


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows").mkdir()
    np.save("rows/a.npy", ROWS[:50])
    np.save("rows/b.npy", ROWS[50:])


def call(*words: Any) -> int:
    return main(["rows", "--k", "6", "--max-iter", "3", *map(str, words), "--quiet"])


@pytest.mark.parametrize("share", [None, 1.5])
@pytest.mark.parametrize("ending", ["npy", "safetensors"])
def test_levels_with_labels(ending: str, share: float | None) -> None:
    bound = [] if share is None else ["--balanced", share]
    assert call("--levels", 2, "--out", f"codes.{ending}", "--labels", "labels.npy", *bound) == 0
    want = vqkernels.residual_kmeans(ROWS, [6, 6], max_iter=3, max_share=share)
    assert_bitwise_equal(torch.from_numpy(np.load("labels.npy")), want.indices)
    if ending == "npy":
        written = list(torch.from_numpy(np.load("codes.npy")))
    else:
        tensors = load_file("codes.safetensors")
        written = [tensors["centroids.0"], tensors["centroids.1"]]
        assert_bitwise_equal(tensors["count.1"], want.count[1])
    for got, expected in zip(written, want.centroids, strict=True):
        assert_bitwise_equal(got, expected)
    summary = json.loads(Path(f"codes.{ending}.json").read_text())
    assert summary["inertia"] == list(want.inertia)
    assert summary["sizes"] == [[int(count.min()), int(count.max())] for count in want.count]
    assert (summary["levels"], summary["balanced"], summary["left_out"]) == (2, share, 1)
    assert sorted(path.name for path in Path().glob(".*")) + sorted(map(str, Path().glob("*checkpoint*"))) == []

    # to start from what was written
    again = ["--levels", 2, "--out", "again.npy", "--init", f"codes.{ending}", "--max-iter", 0]
    assert call(*again) == 0
    assert_bitwise_equal(torch.from_numpy(np.load("again.npy")), torch.stack(want.centroids))


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_labels_and_a_start_of_one_level(metric: str) -> None:
    assert call("--out", "codes.safetensors", "--labels", "labels.npy", "--metric", metric, "--balanced") == 0
    want = vqkernels.kmeans(ROWS, 6, max_iter=3, metric=metric, max_share=1.0)
    labels = vqkernels.balanced_codes(torch.from_numpy(ROWS), want.centroids, metric=metric).indices
    assert_bitwise_equal(torch.from_numpy(np.load("labels.npy")), labels)
    np.save("start.npy", ROWS[20:26].astype(">f8"))
    for start, given in (("start.npy", ROWS[20:26]), ("codes.safetensors", want.centroids.numpy())):
        assert call("--out", "other.npy", "--init", start, "--metric", metric) == 0
        expected = vqkernels.kmeans(ROWS, 6, max_iter=3, init=given, metric=metric)
        assert_bitwise_equal(torch.from_numpy(np.load("other.npy")), expected.centroids)


def test_a_run_in_levels_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the run that nobody stopped."""
    words = ["--levels", 3, "--out", "codes.npy"]
    lloyd, runs = command.lloyd, []

    def stopped(*args: Any, **kwargs: Any) -> Any:
        runs.append(1)
        if len(runs) == 2:
            kwargs["callbacks"] = [stop]
        return lloyd(*args, **kwargs)

    def stop(iteration: int, *told: Any) -> None:
        if iteration == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(command, "lloyd", stopped)
    assert call(*words) == 130
    assert sorted(map(str, Path().glob("*checkpoint*"))) == ["codes.npy.checkpoint", "codes.npy.checkpoint.1"]
    assert call(*words, "--resume") == 0
    want = vqkernels.residual_kmeans(ROWS, [6] * 3, max_iter=3)
    assert_bitwise_equal(torch.from_numpy(np.load("codes.npy")), torch.stack(want.centroids))
    assert not list(Path().glob("*checkpoint*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--levels", "0"], "--levels: expected 1 or, with the metric l2, more, got 0 with l2"),
        (
            ["--levels", "2", "--metric", "cosine"],
            "--levels: expected 1 or, with the metric l2, more, got 2 with cosine",
        ),
        (["--balanced", "0.5"], "--balanced: expected a number >= 1, and no --resume, got 0.5"),
        (["--balanced", "--resume"], "--balanced: expected a number >= 1, and no --resume, got 1"),
        (["--labels", "labels.txt"], "--labels: expected a name ending in .npy in an existing folder"),
        (["--init", "nothing"], "--init: expected k-means++, hierarchical, random or a file ending in"),
        (["--init", "nowhere.npy"], "nowhere.npy"),
        (["--init", "rows/b.npy"], "init: expected"),
        (["--init", "rows/a.npy", "--levels", "2"], "rows/a.npy: expected centroids [2, K, D], got float32 [50, 4]"),
    ],
)
def test_what_does_not_fit_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--out", "codes.npy", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(Path().glob("codes*"))
