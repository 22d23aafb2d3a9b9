"""Tar shards. Oracle: the files that were put in."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.data import shards as shards_module
from models.data.loader import Loader
from models.data.source import open_source
from models.data.transforms import Crop
from models.errors import UserError


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(file, "png")
    return file.getvalue()


def write_shard(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    os.utime(path, (1e9, 1e9))


def write_shards(folder: Path, count: int = 3, samples: int = 5, labels: str | None = "cls") -> None:
    for shard in range(count):
        members = []
        for row in range(samples):
            number = shard * samples + row
            members.append((f"d/{number:04d}.png", png(number)))
            if labels == "cls":
                members.append((f"d/{number:04d}.cls", str(number % 3).encode()))
            elif labels == "json":
                members.append((f"d/{number:04d}.json", json.dumps({"label": number % 3}).encode()))
        write_shard(folder / f"set-{shard:03d}.tar", members)


@pytest.mark.parametrize("labels", ["cls", "json", None])
def test_samples_are_read_at_random(tmp_path: Path, labels: str | None) -> None:
    write_shards(tmp_path, labels=labels)
    train = open_source(f"shards:{tmp_path}/set-{{000..002}}.tar", "train")
    val = pickle.loads(pickle.dumps(open_source(f"shards:{tmp_path}/set-*.tar", "val")))
    assert (len(train), len(val)) == (14, 1)
    assert train.labels == (("0", "1", "2") if labels else ())
    for index in (13, 0, 7, 7, 3):
        number = index + index // 9
        sample = train.read(index)
        assert sample is not None
        assert sample.name == train.name(index) == f"set-{number // 5:03d}.tar/d/{number:04d}"
        assert (sample.image == number).all()
        assert sample.label == (number % 3 if labels else None)
    assert val.read(0).image[0, 0, 0] == 9


def test_worker_processes_read_the_same(tmp_path: Path) -> None:
    write_shards(tmp_path)
    source = open_source(f"shards:{tmp_path}/set-{{000..002}}.tar", "train")
    batches = []
    for workers in (0, 2):
        with Loader(source, Crop(size=4), batch_size=3, workers=workers) as loader:
            batches.append([next(iterator) for iterator in [iter(loader)] for _ in range(6)])
    for one, other in zip(*batches, strict=True):
        assert all(np.array_equal(one[key], other[key]) for key in ("image", "label", "index"))


def test_a_split_may_have_its_own_shards(tmp_path: Path) -> None:
    for split, value in (("train", 1), ("val", 2)):
        (tmp_path / split).mkdir()
        write_shard(tmp_path / split / "a.tar", [(f"{number}.png", png(value)) for number in range(4)])
        source = open_source(f"shards:{tmp_path}/{{split}}/*.tar", split)  # type: ignore[arg-type]
        assert len(source) == 4
        assert source.read(3).image[0, 0, 0] == value  # type: ignore[union-attr]


def test_long_names_odd_members_and_unlabelled_samples(tmp_path: Path) -> None:
    long = "x" * 150
    members = [
        (f"{long}/a.jpg.PNG", png(1)),
        ("b.txt", b"no image"),
        ("c.cls", b"1"),
        ("README", b"no suffix"),
        ("e.seg.png", png(2)),
        ("e.cls", b"no number"),
        ("f.png", b"no image either"),
        ("f.json", b"[1]"),
    ]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        write_shard(tmp_path / "odd.tar", members, form)
        source = open_source(f"shards:{tmp_path}/odd.tar", "train")
        assert (len(source), source.labels) == (2, ())
        assert source.name(0) == f"odd.tar/{long}/a"
        assert [source.read(index).image[0, 0, 0] for index in range(2)] == [1, 2]  # type: ignore[union-attr]
        assert open_source(f"shards:{tmp_path}/odd.tar", "val").read(0) is None


def test_a_shard_that_is_cut_short_is_used_up_to_there_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 1024 bytes each: in a header, between two files, in an image; a header that is none
    for cut, whole in ((3 * 1024 + 100, 3), (3 * 1024, 3), (3 * 1024 + 550, 3), (None, 2)):
        write_shards(tmp_path, count=2, labels=None)
        with (tmp_path / "set-001.tar").open("r+b") as file:
            if cut is not None:
                file.truncate(cut)
            else:
                file.seek(2 * 1024)
                file.write(b"garbage" * 20)
        source = open_source(f"shards:{tmp_path}/set-{{000..001}}.tar", "train")
        assert len(source) == 5 + whole - 1
        assert all(source.read(index) is not None for index in range(len(source)))
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert said.startswith("data: 1 shards are cut short, used up to there: ")
        assert "set-001.tar" in said


def test_the_index_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = shards_module._build
    monkeypatch.setattr(shards_module, "_build", lambda *args: built.append(args) or build(*args))
    write_shards(tmp_path)
    pattern = f"shards:{tmp_path}/set-{{000..002}}.tar"
    first = open_source(pattern, "train").fingerprint
    assert open_source(pattern, "val").fingerprint == first
    assert len(built) == 1
    write_shard(tmp_path / "set-001.tar", [("z.png", png(0))])
    assert open_source(pattern, "train").fingerprint != first
    assert len(built) == 2


def test_a_shard_changed_under_the_source_is_unreadable(tmp_path: Path) -> None:
    write_shards(tmp_path, count=1, samples=12)
    source = open_source(f"shards:{tmp_path}/set-000.tar", "train")
    os.truncate(tmp_path / "set-000.tar", 3000)
    assert source.read(0) is not None
    assert source.read(10) is None
    again = pickle.loads(pickle.dumps(source))
    (tmp_path / "set-000.tar").write_bytes(b"")
    assert again.read(0) is None


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("none-{000..001}.tar", "expected tar shards at .*, got no .*none-000.tar"),
        ("*.nothing", r"expected tar shards at .*, got no .*/\*.nothing"),
        ("text.tar", "expected an uncompressed tar file at .*text.tar, got none"),
        ("packed.tar", "expected an uncompressed tar file at .*packed.tar, got none"),
        ("empty.tar", "expected an uncompressed tar file at .*empty.tar, got none"),
        ("bare.tar", "expected images in 1 tar shards from .*bare.tar on, got none"),
        ("one.tar", "expected at least 2 samples in the shards .*one.tar' to split, got 1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, pattern: str, text: str) -> None:
    (tmp_path / "text.tar").write_text("not a tar file " * 100)
    (tmp_path / "empty.tar").touch()
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.add(__file__, "a.png")
    write_shard(tmp_path / "bare.tar", [("a.txt", b"text")])
    write_shard(tmp_path / "one.tar", [("a.png", png(0))])
    with pytest.raises(UserError, match=text) as raised:
        open_source(f"shards:{tmp_path}/{pattern}", "train")
    assert "\n" not in str(raised.value)


def test_a_pipe_in_place_of_a_shard_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(UserError, match="got no regular file"):
        open_source(f"shards:{tmp_path}/pipe.tar", "train")
