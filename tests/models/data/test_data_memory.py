"""Memory does not grow with the number of images. Oracle: the system's own count, over all processes.

An epoch is read by a process started for it: what this one has gathered from other tests is no matter of the data.
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest
from tools.make_jpegs import make_jpegs

from models.data.folder import FolderSource
from models.data.loader import Loader
from models.data.transforms import Crop

_GIGABYTE = 1 << 30


def memory_of(process: psutil.Process) -> int:
    """Bytes of a process and of the workers it started, shared pages once."""
    return sum(part.memory_full_info().pss for part in (process, *process.children(recursive=True)))


def read_an_epoch(folder: Path, batch_size: int) -> int:
    """The most memory of this process over one epoch with two workers, in bytes; every image comes once."""
    source, peak, seen = FolderSource(folder, "train"), 0, set[int]()
    steps = len(source) // batch_size
    with Loader(source, Crop(size=64, flip=True), batch_size=batch_size, workers=2) as loader:
        for step, batch in enumerate(islice(loader, steps)):
            seen.update(batch["index"].tolist())
            assert batch["label"].max() < len(source.labels)
            if step % max(1, steps // 20) == 0:
                peak = max(peak, memory_of(psutil.Process()))
    assert len(seen) == steps * batch_size
    return peak


def peak_of_an_epoch(folder: Path, batch_size: int) -> int:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(read_an_epoch, folder, batch_size).result()


def test_an_epoch_of_hundreds_of_jpegs(tmp_path: Path) -> None:
    make_jpegs(tmp_path, 400, classes=10)
    assert peak_of_an_epoch(tmp_path, 16) < 1.5 * _GIGABYTE


@pytest.mark.slow
def test_an_epoch_of_fifty_thousand_jpegs_takes_no_more_memory_than_one_of_hundreds(tmp_path: Path) -> None:
    make_jpegs(tmp_path / "few", 400)
    few = peak_of_an_epoch(tmp_path / "few", 64)
    make_jpegs(tmp_path / "many", 50_000)
    many = peak_of_an_epoch(tmp_path / "many", 64)
    assert many < 1.5 * _GIGABYTE
    assert many < few + 50 * (1 << 20)


@pytest.mark.slow
def test_training_on_fifty_thousand_jpegs_takes_less_than_one_and_a_half_gigabytes(tmp_path: Path) -> None:
    make_jpegs(tmp_path / "images", 50_000)
    command = [sys.executable, "-m", "models.train_tokenizer", "patch_fc", "--data", str(tmp_path / "images")]
    command += [
        "--workers",
        "2",
        "--steps",
        "100",
        "--batch-size",
        "16",
        "--out",
        str(tmp_path / "run"),
        "--no-progress",
    ]
    peak = 0
    with subprocess.Popen(command, cwd=Path(__file__).parents[3]) as training:
        while training.poll() is None:
            with suppress(psutil.NoSuchProcess):  # it ends, or one of its workers does
                peak = max(peak, memory_of(psutil.Process(training.pid)))
            time.sleep(0.2)
    assert training.returncode == 0
    assert 0 < peak < 1.5 * _GIGABYTE
