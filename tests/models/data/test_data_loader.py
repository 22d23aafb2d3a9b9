"""The loader. Oracle: the in-process batches, and counting."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from made_sources import Misbehaving, Numbered

from models.data.batches import Batches
from models.data.embedded import EmbeddedSource
from models.data.folder import FolderSource
from models.data.loader import Batch, Loader
from models.data.transforms import Crop
from models.errors import UserError

WHOLE = Crop(size=(3, 4))


def loader(source: object, **changes: object) -> Loader:
    options: dict[str, object] = {"transform": WHOLE, "batch_size": 4, "seed": 3}
    return Loader(source, **(options | changes))  # type: ignore[arg-type]


def first(count: int, made: Loader) -> list[Batch]:
    with made:
        return list(islice(made, count))


def assert_same(got: list[Batch], expected: list[Batch]) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(photo_folder: Path, workers: int) -> None:
    options = {"transform": Crop(size=32, flip=True), "seed": 5}
    for source in (FolderSource(photo_folder, "train"), EmbeddedSource("train")):
        expected = first(7, loader(source, **options))
        assert expected[0]["image"].shape == (4, 3, 32, 32)
        assert not torch.equal(expected[0]["image"], expected[1]["image"])
        assert_same(first(7, loader(source, workers=workers, **options)), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_goes_on_in_the_middle_of_an_epoch(workers: int) -> None:
    whole = first(9, loader(Numbered(50)))
    assert_same(first(4, loader(Numbered(50), start_step=5, workers=workers)), whole[5:])
    assert_same([loader(Numbered(50)).batch(8)], whole[7:8])


def test_every_epoch_sees_each_image_once_in_an_order_of_its_own() -> None:
    drawn = torch.cat([batch["index"] for batch in first(30, loader(Numbered(20), batch_size=4))]).view(6, 20)
    assert torch.equal(drawn.sort(dim=1).values, torch.arange(20).expand(6, 20))
    assert len(drawn.unique(dim=0)) == 6
    other = torch.cat([batch["index"] for batch in first(5, loader(Numbered(20), seed=4))])
    assert not torch.equal(other, drawn[0])


@pytest.mark.parametrize("drawn", [False, True])
def test_two_processes_see_what_one_would(photo_folder: Path, drawn: bool) -> None:
    source = EmbeddedSource("train") if drawn else FolderSource(photo_folder, "train")
    options = {"transform": Crop(size=32, flip=True)}
    one = first(6, loader(source, batch_size=6, **options))
    halves = [first(6, loader(source, batch_size=3, rank=rank, world=2, **options)) for rank in (0, 1)]
    assert_same(
        [{key: torch.cat([left[key], right[key]]) for key in left} for left, right in zip(*halves, strict=True)], one
    )


def test_few_images_are_drawn_with_replacement() -> None:
    numbers = torch.cat([batch["index"] for batch in first(100, loader(Numbered(8, drawn=True), batch_size=32))])
    counts = numbers.bincount(minlength=8).double()
    # chi square of 7 degrees of freedom: below 40 but for one seed in a million
    assert ((counts - 400) ** 2 / 400).sum() < 40
    assert any(len(row.unique()) < 8 for row in numbers.view(-1, 8))


def test_pixels_reach_the_tensor() -> None:
    (batch,) = first(1, loader(Numbered(256), batch_size=256))
    assert torch.equal(batch["image"][:, 1, 2, 3], batch["index"] / 127.5 - 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_samples_are_replaced_counted_and_named(workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    broken = frozenset({3, 4, 9})
    made = loader(Numbered(10, broken), workers=workers, batch_size=5)
    got = torch.cat([batch["index"] for batch in islice(made, 2)]).tolist()
    expected = torch.cat([batch["index"] for batch in first(2, loader(Numbered(10), batch_size=5))]).tolist()
    assert got == [{3: 5, 4: 5, 9: 0}.get(number, number) for number in expected]
    assert made.skipped == 3
    said = capsys.readouterr().err.splitlines()
    assert said[0] in [f"data: skipped number {number} (unreadable)" for number in broken]
    assert len(said) == 2
    assert said[1].startswith("data: skipped 3 samples: number ")


def test_a_pass_in_order_leaves_out_what_is_unreadable() -> None:
    for workers in (0, 2):
        for world in (1, 2):
            seen = []
            for rank in range(world):
                options = {"rank": rank, "world": world, "shuffle": False, "workers": workers, "batch_size": 2}
                seen += [batch["index"].tolist() for batch in loader(Numbered(11, frozenset({2, 3, 7})), **options)]
            assert sorted(number for batch in seen for number in batch) == [0, 1, 4, 5, 6, 8, 9, 10]
    assert seen == [[0, 1], [4, 5], [8, 9], [6], [10]]


def test_nothing_readable_is_an_error_of_one_line() -> None:
    with pytest.raises(UserError, match=r"^data: none of 5 samples can be used, .*number \d \(unreadable\)$"):
        first(1, loader(Numbered(5, frozenset(range(5)))))
    with pytest.raises(UserError, match=r"the last is number \d \(3 x 4 pixels, smaller than the crop\)"):
        first(1, loader(Numbered(5), transform=Crop(size=5), workers=1))
    with pytest.raises(UserError, match="data: expected at least one sample, got none"):
        loader(Numbered(0))


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ("killed", UserError, r"^data: worker process \d+ was ended by SIGKILL$"),
        ("exits", UserError, r"^data: worker process \d+ ended with exit code 3$"),
        ("raises", RuntimeError, "ZeroDivisionError: a bug in the source"),
    ],
)
def test_a_worker_that_ends_is_an_error(how: str, error: type[Exception], text: str) -> None:
    with loader(Misbehaving(how), workers=2) as made, pytest.raises(error, match=text):
        next(iter(made))


def test_what_a_library_prints_does_not_come_between(capfd: pytest.CaptureFixture[str]) -> None:
    assert_same(first(3, loader(Misbehaving("prints"), workers=1)), first(3, loader(Numbered(10))))
    assert "and one written in C" in capfd.readouterr().err


def workers_of(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children() if "models.data.worker" in "".join(child.cmdline())]


def wait_until_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive


def test_closing_ends_the_workers() -> None:
    made = loader(Numbered(10), workers=2)
    batches = iter(made)
    next(batches)
    workers = workers_of(os.getpid())
    made.close()
    assert len(workers) == 2
    wait_until_gone(workers)


def test_waiting_for_a_worker_that_hangs_can_be_interrupted() -> None:
    workers = []

    def interrupt(*_: object) -> None:
        workers.extend(workers_of(os.getpid()))
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1)
        with pytest.raises(KeyboardInterrupt):
            next(iter(loader(Misbehaving("hangs"), workers=2)))
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert len(workers) == 2
    wait_until_gone(workers)


def test_signals_that_stop_the_training_do_not_stop_its_workers() -> None:
    made = loader(Numbered(10), workers=1, prefetch=1)
    batches = iter(made)
    got = [next(batches)]
    (worker,) = workers_of(os.getpid())
    worker.send_signal(signal.SIGTERM)
    worker.send_signal(signal.SIGINT)
    got += islice(batches, 20)
    assert_same(got, first(21, loader(Numbered(10))))
    made.close()


def test_workers_end_with_a_killed_training() -> None:
    program = f"""if True:
        import sys, time
        sys.path[:] = {sys.path!r}
        from made_sources import Numbered
        from models.data.loader import Loader
        from models.data.transforms import Crop
        batches = iter(Loader(Numbered(10), Crop(size=3), batch_size=1, workers=2))
        next(batches)
        print("ready", flush=True)
        time.sleep(600)
    """
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        assert training.stdout.readline() == "ready\n"
        workers = workers_of(training.pid)
        training.kill()
    assert len(workers) == 2
    wait_until_gone(workers)


def test_workers_import_no_torch() -> None:
    made = loader(Numbered(10), workers=1)
    batches = iter(made)
    next(batches)
    (worker,) = workers_of(os.getpid())
    files = {os.path.basename(entry.path) for entry in worker.memory_maps()}
    assert not {name for name in files if name.startswith("libtorch")}
    made.close()


def test_waiting_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    made = loader(Numbered(10))
    read = Numbered.read
    monkeypatch.setattr(Numbered, "read", lambda self, index: time.sleep(0.01) or read(self, index))
    before = made.wait_seconds
    list(islice(made, 3))
    assert before == 0
    assert made.wait_seconds >= 12 * 0.01


def test_a_source_is_sent_to_the_workers_as_a_few_kilobytes(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"a rather long name of a class, number {number}").mkdir()
        (tmp_path / f"a rather long name of a class, number {number}" / "image.png").touch()
    source = FolderSource(tmp_path, "train")
    assert len(source.labels) == 300
    batches = Batches(source=source, transform=WHOLE, batch_size=1, seed=0, rank=0, world=1, shuffle=True)
    assert len(pickle.dumps(batches)) < 2000
    assert pickle.loads(pickle.dumps(source)).labels == source.labels


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
        ({"rank": 2, "world": 2}, "rank: expected 0 to 1, got 2"),
        ({"workers": -1}, "workers, prefetch: expected at least 0 and 1, got -1 and 2"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        loader(Numbered(3), **changes)


def test_samples_that_do_not_agree_are_an_error_of_one_line() -> None:
    class Growing(Numbered):
        def read(self, index: int) -> object:  # type: ignore[override]
            sample = super().read(index)
            assert sample is not None
            return sample._replace(image=np.zeros((index + 1, 4, 3), np.uint8))

    class AsIs:
        def __call__(self, sample: object, random: object) -> dict[str, np.ndarray]:
            return {"image": sample.image}  # type: ignore[attr-defined]

    with pytest.raises(UserError, match="data: samples of one batch have the shapes"):
        loader(Growing(9), transform=AsIs()).batch(1)
