"""K-means of rows that are not in memory. Oracle: the same rows in memory, bit for bit."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies
from hypothesis.extra import numpy as arrays

from vqkernels import KMeansResult, kmeans
from vqkernels.kmeans import source as sources
from vqkernels.kmeans.data import read_ahead
from vqkernels.kmeans.files import save_safetensors
from vqkernels.kmeans.sums import exact_sum
from vqkernels.testing import assert_bitwise_equal, peak_memory_growth

ROWS = 700


class Again:
    """Batches of uneven sizes, some of them empty, that can be gone through again."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.rows.split([1, 0, 200, 99, 0, 400]))


def memmap(rows: torch.Tensor, folder: Path) -> np.memmap[Any, Any]:
    np.save(folder / "rows.npy", rows.numpy())
    return np.load(folder / "rows.npy", mmap_mode="r")


def columns(rows: torch.Tensor, folder: Path) -> Path:
    np.save(folder / "columns.npy", np.asfortranarray(rows.numpy()))
    assert b"'fortran_order': True" in (folder / "columns.npy").read_bytes()
    return folder / "columns.npy"


def other_order(rows: torch.Tensor, folder: Path) -> Path:
    np.save(folder / "other.npy", rows.numpy().astype(">f4"))
    return folder / "other.npy"


def shards(rows: torch.Tensor, folder: Path) -> Path:
    for number, part in enumerate(rows.split([300, 1, 399])):
        path = folder / f"part{number}"
        if number == 1:
            save_safetensors(path.with_suffix(".safetensors"), {"features": part}, {"made": "by hand"})
        else:
            np.save(path.with_suffix(".npy"), part.numpy())
    (folder / "notes.txt").write_text("no rows")
    return folder


KINDS: dict[str, Callable[[torch.Tensor, Path], Any]] = {
    "array": lambda rows, _: rows.numpy(),
    "memmap": memmap,
    "file": lambda rows, folder: Path(memmap(rows, folder).filename or ""),
    "columns": columns,
    "the other byte order": other_order,
    "map of columns": lambda rows, folder: np.load(columns(rows, folder), mmap_mode="r"),
    "shards": shards,
    "batches": lambda rows, _: Again(rows),
    "arrays": lambda rows, _: [part.numpy() for part in rows.split(123)],
}


def assert_same(got: KMeansResult, want: KMeansResult) -> None:
    assert_bitwise_equal(got.centroids, want.centroids)
    assert_bitwise_equal(got.count, want.count)
    assert got[2:] == want[2:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{}, {"metric": "cosine", "weight": True, "init": "hierarchical"}, {"batch_size": 64}]
)
def test_rows_from_anywhere_give_the_same_bits(
    kind: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_READ", 64 * 5)  # many chunks
    rows = torch.randn(ROWS, 5)
    rows[::7, 2] = torch.nan
    rows[3] = torch.nan  # the whole of a chunk can be unusable
    options = {**options, "max_iter": 6, "seed": 4}
    if options.pop("weight", False):
        options["weight"] = torch.rand(ROWS) + 0.1
    told: dict[str, list[tuple[Any, ...]]] = {"here": [], "there": []}
    # rows in memory would be shuffled
    reference = [rows] if "batch_size" in options else rows
    want = kmeans(reference, 20, callback=lambda *args: told["here"].append(args), **options)
    got = kmeans(KINDS[kind](rows, tmp_path), 20, callback=lambda *args: told["there"].append(args), **options)
    if kind == "array" and "batch_size" in options:
        assert float(got.count.sum()) == float(want.count.sum())
        return
    assert_same(got, want)
    assert told["here"] == told["there"]


def test_random_seeds_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(500, 3)
    want = kmeans(rows, 50, init="random", max_iter=0, seed=9)
    assert_same(kmeans(rows.split(77), 50, init="random", max_iter=0, seed=9), want)
    found = {tuple(row) for row in want.centroids.tolist()}
    assert len(found) == 50
    assert found < {tuple(row) for row in rows.tolist()}
    # uniform: over many seeds every row is drawn about as often as the others
    drawn = torch.zeros(20)
    line = torch.arange(20.0)[:, None]
    for seed in range(400):
        drawn[kmeans(line, 5, init="random", max_iter=0, seed=seed).centroids[:, 0].long()] += 1
    # 100 expected; binomial with standard deviation 8.7, and 20 of them: five deviations
    assert float((drawn - 100).abs().max()) < 5 * math.sqrt(400 * 0.25 * 0.75)


def test_two_seeds_are_drawn_by_squared_distance() -> None:
    """The exact law of k-means++ with three points: the second is one of two, by weight times squared distance."""
    points = torch.tensor([[0.0], [1.0], [3.0]])
    pairs = torch.zeros(3, 3)
    for seed in range(300):
        first, second = kmeans(points, 2, max_iter=0, seed=seed).centroids[:, 0].tolist()
        pairs[[0.0, 1.0, 3.0].index(first), [0.0, 1.0, 3.0].index(second)] += 1
    law = torch.tensor([[0, 1 / 10, 9 / 10], [1 / 5, 0, 4 / 5], [9 / 13, 4 / 13, 0]]) / 3
    assert float(((pairs - 300 * law) / (300 * law * (1 - law)).sqrt().clamp(min=1)).abs().max()) < 5


MANY = """
import numpy, torch, vqkernels
from vqkernels.kmeans import source
source._READ = {chunk}
torch.set_num_threads(1)
def run(n):
    data = numpy.lib.format.open_memmap({path!r}, mode="w+", dtype="float32", shape=(n, 16){order})
    for start in range(0, n, 10000):
        data[start : start + 10000] = numpy.random.default_rng(0).standard_normal((10000, 16), dtype="float32")
    data.flush()
    del data
    x = {opened}
    return lambda: vqkernels.kmeans(x, 8, init=torch.randn(8, 16), max_iter=1)
run(50000)()
measured = run({n})
"""
OPENED = {"memmap": "numpy.load({path!r}, mmap_mode='r')", "file": "{path!r}", "columns": "{path!r}"}


@pytest.mark.parametrize(
    "kind", ["file", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("memmap", "columns"))]
)
def test_memory_does_not_depend_on_the_number_of_rows(kind: str, tmp_path: Path) -> None:
    path, n, chunk = str(tmp_path / "rows.npy"), 800_000, 1 << 17
    order = {"columns": ", fortran_order=True"}.get(kind, "")
    setup = MANY.format(path=path, n=n, chunk=chunk, order=order, opened=OPENED[kind].format(path=path))
    # three chunks read ahead, some float64 copies of one, and what an allocator keeps
    budget = chunk * (3 * 4 + 6 * 8) + (8 << 20)
    assert 3 * budget < n * 16 * 4
    assert peak_memory_growth(setup, "measured()") < budget


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: np.save(folder / "z.npy", np.zeros((3, 4), np.float32)), "expected rows of 5 numbers"),
        (lambda folder: np.save(folder / "z.npy", np.zeros((3, 5), np.int64)), "not a readable .npy file"),
        (lambda folder: np.save(folder / "z.npy", np.zeros(3, np.float32)), "got shape"),
        (lambda folder: (folder / "z.npy").write_bytes(b"no array"), "not a readable .npy file"),
        (lambda folder: (folder / "z.safetensors").write_bytes(b"\xff" * 20), "not a readable .safetensors file"),
        (lambda folder: save_safetensors(folder / "z.safetensors", {}, {}), "it holds 0 tensors, not one"),
        (lambda folder: (folder / "a.npy").write_bytes((folder / "a.npy").read_bytes()[:-1]), "expected .* bytes"),
        (lambda folder: (folder / "a.npy").unlink(), "expected .npy or .safetensors files in this folder"),
    ],
)
def test_broken_files_are_named(spoil: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).standard_normal((50, 5)).astype(np.float32))
    assert len(kmeans(tmp_path, 3).centroids) == 3
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        kmeans(tmp_path, 3)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_files_of_every_dtype(dtype: Any, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((50, 5)).astype(dtype)
    np.save(tmp_path / "a.npy", rows)
    assert_same(kmeans(tmp_path, 3), kmeans(rows, 3))


def test_other_rows_in_the_second_pass_are_noticed() -> None:
    class Shrinking:
        passes = 0

        def __iter__(self) -> Iterator[torch.Tensor]:
            self.passes += 1
            return iter([torch.arange(10.0)[: 11 - self.passes, None]])

    with pytest.raises(ValueError, match="same rows in every pass, got 9 after 10"):
        kmeans(Shrinking(), 2)


def test_read_ahead_passes_errors_on_and_ends_its_thread() -> None:
    def failing() -> Iterator[torch.Tensor]:
        yield torch.zeros(1, 1)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(read_ahead(failing()))
    endless = read_ahead(iter(lambda: torch.zeros(1, 1), None))
    next(endless)
    endless.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "vqkernels-read-ahead"]


@hypothesis.given(
    arrays.arrays(
        np.float64, strategies.integers(0, 30), elements=strategies.floats(allow_nan=False, allow_infinity=False)
    )
)
def test_exact_sum_is_rounded_once(values: np.ndarray) -> None:
    """Oracle: ``math.fsum``."""
    try:
        want = math.fsum(values)
    except OverflowError:
        return
    assert exact_sum(torch.from_numpy(values)) == want


def test_exact_sum_of_infinities_is_infinite() -> None:
    assert exact_sum(torch.tensor([1.0, torch.inf, 2.0], dtype=torch.float64)) == math.inf


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", [">f2", ">f4", ">f8", "g"])
def test_floats_of_any_kind_and_byte_order_are_read(kind: str, order: Any, tmp_path: Path) -> None:
    """Oracle: NumPy."""
    rows = np.random.default_rng(0).standard_normal((20, 3)).astype(kind)
    np.save(tmp_path / "rows.npy", np.asarray(rows, order=order))
    (file,) = sources.find_files(tmp_path)
    wanted = torch.from_numpy(rows.astype({">f2": "f2", ">f4": "f4"}.get(kind, "f8")))
    assert_bitwise_equal(file.read(0, 20), wanted)
    assert_bitwise_equal(file.part(3, 11).read(2, 7), wanted[5:10])
