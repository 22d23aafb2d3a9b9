"""``python -m vqkernels.kmeans``. Oracles: ``kmeans`` on the same rows; the run that nobody killed."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import vqkernels
from vqkernels.kmeans import command
from vqkernels.kmeans.checkpoint import load_state
from vqkernels.kmeans.command import main, share
from vqkernels.kmeans.source import find_files
from vqkernels.testing import assert_bitwise_equal

ROOT = Path(__file__).parents[2]
FULL = "error: [Errno 27] File too large"
PYTHON = [sys.executable, "-m", "vqkernels.kmeans"]


def features(folder: Path, n: int = 600, d: int = 4) -> Path:
    folder.mkdir(exist_ok=True)
    rows = np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)
    rows[3, 1], rows[7] = np.nan, np.inf
    for number, part in enumerate(np.array_split(rows, [100, 101])):
        np.save(folder / f"{number}.npy", part)
    return folder


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*args: Any, program: Sequence[str] = PYTHON, **options: Any) -> subprocess.CompletedProcess[str]:
    line = [*program, *map(str, args)]
    return subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, **options)


def without_times(path: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(path.with_name(path.name + ".json").read_text())
    return {key: value for key, value in summary.items() if key not in ("seconds", "out", "processes", "threads")}


def test_the_result_is_that_of_the_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, out = features(tmp_path / "rows"), tmp_path / "codes.safetensors"
    assert main([str(rows), "--k", "30", "--out", str(out), "--metric", "cosine", "--max-iter", "3"]) == 0
    want = vqkernels.kmeans(rows, 30, metric="cosine", max_iter=3)
    written = load_file(out)
    assert_bitwise_equal(written["centroids"], want.centroids)
    assert_bitwise_equal(written["count"], want.count)
    printed, told = capsys.readouterr()
    summary = json.loads(printed)
    assert summary == json.loads((tmp_path / "codes.safetensors.json").read_text())
    assert (summary["inertia"], summary["history"]) == (want.inertia, want.history)
    assert (summary["rows"], summary["left_out"], summary["dim"]) == (598, 2, 4)
    lines = told.splitlines()
    assert "left out 2 rows" in lines[0]
    assert all(word in lines[1] for word in ("inertia", "moved", "empty", "rows/s", "ETA"))
    assert (tmp_path / "codes.safetensors.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in tmp_path.glob("*codes*")) == [
        "codes.safetensors",
        "codes.safetensors.json",
        "codes.safetensors.png",
    ]
    # finished: there is nothing to resume
    before = out.stat().st_mtime_ns
    assert main([str(rows), "--k", "30", "--out", str(out), "--resume"]) == 0
    assert out.stat().st_mtime_ns == before


def test_a_killed_run_loses_one_iteration_and_no_bit(tmp_path: Path) -> None:
    rows = features(tmp_path / "rows", 60_000)
    whole, cut = tmp_path / "whole.npy", tmp_path / "cut.npy"
    options = [rows, "--k", 60, "--max-iter", 12, "--tol", 0, "--quiet"]
    assert main([*map(str, options), "--out", str(whole)]) == 0
    checkpoint = tmp_path / "cut.npy.checkpoint"
    kills = []
    for resume in ([], ["--resume"]):
        process = subprocess.Popen(
            [*PYTHON, *map(str, options), "--out", str(cut), *resume],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        target = 3 + (kills[-1] if kills else 0)
        while not (checkpoint.exists() and iterations(checkpoint) >= target):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        kills.append(iterations(checkpoint))
        assert not cut.exists()
    assert 3 <= kills[0] < kills[1] < 12
    done = run(*options[:-1], "--out", cut, "--resume")
    assert done.returncode == 0, done.stderr
    # it goes on after the last whole iteration, and repeats none before
    assert len([line for line in done.stderr.splitlines() if "inertia" in line]) == 13 - kills[1]
    assert cut.read_bytes() == whole.read_bytes()
    assert without_times(cut) == without_times(whole)
    assert not checkpoint.exists()


def iterations(checkpoint: Path) -> int:
    return len(load_state(checkpoint, {}).history)


@pytest.mark.slow
@pytest.mark.multiproc
def test_torchrun_gives_the_same_bits(tmp_path: Path) -> None:
    rows = features(tmp_path / "rows")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    options = [rows, "--k", 30, "--max-iter", 3, "--out"]
    done = run(*options, tmp_path / "two.npy", program=[*torchrun, "-m", "vqkernels.kmeans"])
    assert done.returncode == 0, done.stderr
    assert run(*options, tmp_path / "one.npy").returncode == 0
    assert (tmp_path / "one.npy").read_bytes() == (tmp_path / "two.npy").read_bytes()
    assert without_times(tmp_path / "one.npy") == without_times(tmp_path / "two.npy")
    assert json.loads(done.stdout)["processes"] == 2


def test_processes_share_the_rows_in_order(tmp_path: Path) -> None:
    files = find_files(features(tmp_path / "rows"))
    for processes in (1, 2, 3, 7):
        parts = [share(files, rank, processes) for rank in range(processes)]
        rows = torch.cat([file.read(0, file.rows) for part in parts for file in part])
        assert_bitwise_equal(rows, torch.cat([file.read(0, file.rows) for file in files]))
        sizes = [sum(file.rows for file in part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_quiet_is_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not a word of rows left out, of progress, of the summary or of there being nothing to resume."""
    rows, out = features(tmp_path / "rows"), tmp_path / "codes.npy"
    for more in ([], ["--resume"]):
        assert main([str(rows), "--k", "5", "--out", str(out), "--quiet", *more]) == 0
        assert capsys.readouterr() == ("", "")
    assert json.loads((tmp_path / "codes.npy.json").read_text())["left_out"] == 2


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, out = features(tmp_path / "rows"), tmp_path / "codes.npy"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "save_results", interrupted)
        assert main([str(rows), "--k", "5", "--out", str(out), "--quiet"]) == 130
    capsys.readouterr()
    assert main([str(rows), "--k", "6", "--out", str(out), "--quiet", "--resume"]) == 2
    assert "expected a run with k=6, got 5" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the same error, after some bytes were written."""
    rows, out = features(tmp_path / "rows"), tmp_path / "codes.npy"
    done = run(
        *[rows, "--k", 590, "--out", out, "--quiet"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [FULL]
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]
