"""Image folders and their index. Oracle: the files themselves."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.data import folder as folder_module
from models.data.folder import FolderSource, folder_index
from models.data.index import cache_folder
from models.errors import UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQKERNELS_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(path)


def names(source: FolderSource) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def settle(root: Path) -> None:
    """Nothing below has been changed for an hour."""
    then = time.time() - 3600
    for path in [root, *root.rglob("*")]:
        os.utime(path, (then, then))


def test_every_tenth_image_is_held_out(tmp_path: Path) -> None:
    for number in range(21):
        write_image(tmp_path / f"{number:02d}.png", number)
    train, val = FolderSource(tmp_path, "train"), FolderSource(str(tmp_path), "val")
    assert names(val) == ["09.png", "19.png"]
    assert names(train) == [f"{number:02d}.png" for number in range(21) if number % 10 != 9]
    for source in (train, val):
        for index, name in enumerate(names(source)):
            sample = source.read(index)
            assert sample is not None
            assert (sample.name, sample.label, sample.image.shape) == (name, None, (4, 5, 3))
            assert (sample.image == int(name[:2])).all()
    few = tmp_path / "few"
    for number in range(3):
        write_image(few / f"{number}.png")
    assert (names(FolderSource(few, "train")), names(FolderSource(few, "val"))) == (["0.png", "1.png"], ["2.png"])


def test_subfolders_are_classes(tmp_path: Path) -> None:
    for name in ("zebra/1.png", "zebra/deep/0.png", "ant/3.JPEG", "ant/2.png", "mule/9.png"):
        write_image(tmp_path / name)
    (tmp_path / "empty").mkdir()
    train, val = FolderSource(tmp_path, "train"), FolderSource(tmp_path, "val")
    assert train.labels == val.labels == ("ant", "mule", "zebra")
    assert names(train) == ["ant/2.png", "ant/3.JPEG", "mule/9.png", "zebra/1.png"]
    assert names(val) == ["zebra/deep/0.png"]
    assert [train.read(index).label for index in range(4)] == [0, 0, 1, 2]  # type: ignore[union-attr]
    write_image(tmp_path / "loose.png")
    assert FolderSource(tmp_path, "train").labels == ()
    assert FolderSource(tmp_path, "train").read(0).label is None  # type: ignore[union-attr]


def test_train_and_val_folders_are_the_split(tmp_path: Path) -> None:
    for name in ("train/b/1.png", "train/c/2.png", "val/a/3.png", "val/c/4.png", "test/x/5.png", "6.png"):
        write_image(tmp_path / name)
    train, val = FolderSource(tmp_path, "train"), FolderSource(tmp_path, "val")
    assert (names(train), names(val)) == (["train/b/1.png", "train/c/2.png"], ["val/a/3.png", "val/c/4.png"])
    assert train.labels == val.labels == ("a", "b", "c")
    assert [train.read(0).label, train.read(1).label, val.read(0).label] == [1, 2, 0]  # type: ignore[union-attr]
    # imagenet's validation images often lie flat
    write_image(tmp_path / "val" / "7.png")
    flat, train = FolderSource(tmp_path, "val"), FolderSource(tmp_path, "train")
    assert (flat.labels, train.labels) == ((), ("a", "b", "c"))
    for file in (tmp_path / "val").rglob("*.png"):
        file.unlink()
    with pytest.raises(UserError, match=r"expected images below its val in .*, got 4 in all"):
        FolderSource(tmp_path, "val")


def test_too_few_images_or_no_folder_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data: expected at least 2 images to split in .*, got 0 in all$"):
        FolderSource(tmp_path, "train")
    write_image(tmp_path / "one.png")
    with pytest.raises(UserError, match="got 1 in all"):
        FolderSource(tmp_path, "train")
    with pytest.raises(UserError, match="data: expected 'embedded' or a folder of images, got 'nowhere'"):
        FolderSource("nowhere", "train")


def test_what_is_no_regular_file_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        write_image(tmp_path / "real" / f"{number}.png")
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as made:
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        made.bind("socket.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "nowhere.png").symlink_to("nothing")
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "real" / "again").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "0.txt").write_text("no image")
    write_image(tmp_path / "elsewhere" / "3.png")
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "real" / "4.png").symlink_to(tmp_path / "elsewhere" / "3.png")
    source = FolderSource(tmp_path, "train")
    assert names(source) == ["elsewhere/3.png", "real/0.png", "real/1.png", "real/2.png"]
    assert names(FolderSource(tmp_path, "val")) == ["real/4.png"]
    # a file that has become a pipe since
    (tmp_path / "real" / "0.png").unlink()
    os.mkfifo(tmp_path / "real" / "0.png")
    assert source.read(1) is None


def test_names_that_are_no_utf8_are_read_and_printed_escaped(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path)
    for number, name in enumerate((b"caf\xe9.png", b"line\nbreak.png", b"z.png", "ä.png".encode())):
        write_image(tmp_path / "made.png", number)
        os.rename(tmp_path / "made.png", os.path.join(root, name))
    train = FolderSource(tmp_path, "train")
    assert names(train) == ["caf\\xe9.png", "line\\nbreak.png", "z.png"]
    assert names(FolderSource(tmp_path, "val")) == ["ä.png"]
    assert [int(train.read(index).image[0, 0, 0]) for index in range(3)] == [0, 1, 2]  # type: ignore[union-attr]


def test_a_folder_without_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        write_image(tmp_path / "open" / f"{number}.png")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refusing(path: bytes) -> object:  # root may read everything, whatever its mode
        if path.endswith(b"closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(folder_module.os, "scandir", refusing)
    assert len(FolderSource(tmp_path, "train")) == 2
    assert capsys.readouterr().err.endswith(": left out 1 folders, unreadable: closed\n")


def build_counter(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    built: list[bytes] = []
    build = folder_module._build
    monkeypatch.setattr(folder_module, "_build", lambda root, wanted: built.append(root) or build(root, wanted))
    return built


def test_the_index_is_built_once_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build_counter(monkeypatch)
    for number in range(12):
        write_image(tmp_path / "a" / f"{number}.png", number)
    settle(tmp_path)
    source = FolderSource(tmp_path, "train")
    assert FolderSource(tmp_path, "val").fingerprint == source.fingerprint
    assert FolderSource(os.path.relpath(tmp_path), "train").fingerprint == source.fingerprint
    assert len(built) == 1
    fingerprints = {source.fingerprint}
    write_image(tmp_path / "a" / "new.png")
    fingerprints.add(FolderSource(tmp_path, "train").fingerprint)
    (tmp_path / "a" / "5.png").rename(tmp_path / "a" / "55.png")
    settle(tmp_path)
    fingerprints.add(FolderSource(tmp_path, "train").fingerprint)
    assert len(built) == 3
    with (tmp_path / "a" / "7.png").open("ab") as file:  # in place: of the folder nothing changes
        file.write(b"more")
    fingerprints.add(FolderSource(tmp_path, "train").fingerprint)
    assert FolderSource(tmp_path, "train").fingerprint in fingerprints
    assert len(built) == len(fingerprints) == 4


def test_a_folder_changed_just_now_is_indexed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file added in the same tick of the clock would not show."""
    built = build_counter(monkeypatch)
    for number in range(3):
        write_image(tmp_path / f"{number}.png")
    one, other = FolderSource(tmp_path, "train"), FolderSource(tmp_path, "train")
    assert len(built) == 2
    assert one.fingerprint == other.fingerprint
    assert one.read(0) is not None


def test_a_damaged_index_is_made_again(tmp_path: Path) -> None:
    for number in range(3):
        write_image(tmp_path / f"{number}.png")
    settle(tmp_path)
    path = folder_index(tmp_path).path
    for damage in (
        lambda file: file.unlink(),
        lambda file: os.truncate(file, 100),
        lambda file: os.truncate(file, 0),
    ):
        damage(path / "files_offsets.npy")
        assert names(FolderSource(tmp_path, "train")) == ["0.png", "1.png"]
        assert folder_index(tmp_path).path == path


def test_without_a_cache_folder_the_index_is_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VQKERNELS_CACHE", str(tmp_path / "file" / "below"))
    for number in range(3):
        write_image(tmp_path / f"{number}.png")
    source = pickle.loads(pickle.dumps(FolderSource(tmp_path, "train")))
    assert names(source) == ["0.png", "1.png"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "cannot keep an index there (Not a directory)" in said


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == Path(os.environ["VQKERNELS_CACHE"])
    monkeypatch.delenv("VQKERNELS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "vqkernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "vqkernels"


@pytest.mark.parametrize(
    "classes", [10, pytest.param(1000, marks=pytest.mark.slow, id="1.3 million")], ids=lambda count: str(count)
)
def test_the_index_of_a_million_files_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int) -> None:
    """1300 files a class, named as ImageNet's; below 200 MB for 1.3 million."""
    walk = [
        (
            b"" if number < 0 else b"n%08d" % number,
            1,
            [] if number < 0 else [(b"n%08d_%05d.JPEG" % (number, image), 110_000, 1) for image in range(1300)],
        )
        for number in range(-1, classes)
    ]
    monkeypatch.setattr(folder_module, "_walk", lambda root, suffixes, left_out: iter(walk))
    source = FolderSource(tmp_path, "train")
    size = sum(file.stat().st_size for file in source._index.path.iterdir())
    assert size / (classes * 1300) < 200e6 / 1.3e6
    assert len(source) == classes * 1170
    assert source.name(len(source) - 1) == f"n{classes - 1:08d}/n{classes - 1:08d}_01298.JPEG"
    assert sys.getsizeof(pickle.dumps(source)) < 2000
