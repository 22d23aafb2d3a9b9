"""Images with label maps. Oracle: the maps that were written, in the conventions of each set."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.data.source import open_source
from models.errors import UserError


def write_image(path: Path, value: int = 0, size: tuple[int, int] = (4, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


def write_map(path: Path, values: list[int], kind: type = np.uint8, size: tuple[int, int] = (4, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.resize(np.asarray(values, kind), size)
    Image.fromarray(pixels).save(path)


def read(root: Path, split: str, index: int = 0) -> list[int]:
    sample = open_source(f"maps:{root}", split).read(index)  # type: ignore[arg-type]
    assert sample is not None
    assert sample.map is not None
    assert sample.map.shape == (4, 6)
    return sample.map.ravel().tolist()


def test_ade20k(tmp_path: Path) -> None:
    for split, number in (("training", 1), ("validation", 2)):
        write_image(tmp_path / f"images/{split}/ADE_{number:08d}.jpg", number)
        write_map(tmp_path / f"annotations/{split}/ADE_{number:08d}.png", [0, 1, 150, 151])
    for split in ("train", "val"):
        source = open_source(f"maps:{tmp_path}", split)  # type: ignore[arg-type]
        assert len(source) == 1
        assert read(tmp_path, split)[:4] == [-1, 0, 149, -1]
    assert open_source(f"maps:{tmp_path}", "val").name(0) == "images/validation/ADE_00000002.jpg"


@pytest.mark.parametrize(("images", "maps"), [("images/", "annotations"), ("", "stuffthingmaps")])
def test_coco_stuff(tmp_path: Path, images: str, maps: str) -> None:
    for split in ("train2017", "val2017"):
        write_image(tmp_path / f"{images}{split}/000000000009.jpg")
        write_map(tmp_path / f"{maps}/{split}/000000000009.png", [0, 181, 255, 92])
    for split in ("train", "val"):
        assert len(open_source(f"maps:{tmp_path}", split)) == 1  # type: ignore[arg-type]
        assert read(tmp_path, split)[:4] == [0, 181, -1, 92]


def test_cityscapes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number in (0, 1):
            name = f"{split}/aachen/aachen_{number:06d}"
            write_image(tmp_path / f"leftImg8bit/{name}_leftImg8bit.png")
            write_map(tmp_path / f"gtFine/{name}_gtFine_labelIds.png", [7, 33, 0, 6, 26])
            write_map(tmp_path / f"gtFine/{name}_gtFine_instanceIds.png", [7000], np.uint16)
            write_image(tmp_path / f"gtFine/{name}_gtFine_color.png")
        write_map(tmp_path / f"gtFine/{split}/aachen/aachen_000001_gtFine_labelTrainIds.png", [0, 18, 255, 19])
    source = pickle.loads(pickle.dumps(open_source(f"maps:{tmp_path}", "val")))
    assert len(source) == 2
    assert len(source.map_labels) == 19
    assert read(tmp_path, "val", 0)[:5] == [0, 18, -1, -1, 13]
    assert source.map_labels[13] == "car"
    assert read(tmp_path, "val", 1)[:4] == [0, 18, -1, -1]


def test_images_beside_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        write_image(tmp_path / f"images/deep/{number:02d}.jpg", number)
        if number != 5:
            write_map(tmp_path / f"maps/deep/{number:02d}.png", [number, 254, 255])
    train, val = (open_source(f"maps:{tmp_path}", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (10, 1)
    assert capsys.readouterr().err.splitlines()[0].endswith(": left out 1 images without a map")
    assert read(tmp_path, "val")[:3] == [10, 254, -1]
    for number in range(12):
        write_map(tmp_path / f"maps/deep/{number:02d}.png", [number, 255, 300, 65535], np.uint16)
    assert read(tmp_path, "train")[:4] == [0, 255, 300, -1]
    (tmp_path / "maps").rename(tmp_path / "labels")
    assert read(tmp_path, "train")[:4] == [0, 255, 300, -1]


def test_a_map_that_does_not_fit_its_image_makes_the_sample_unreadable(tmp_path: Path) -> None:
    for number in range(5):
        write_image(tmp_path / f"images/{number}.png")
        write_map(tmp_path / f"maps/{number}.png", [1])
    write_map(tmp_path / "maps/0.png", [1], size=(4, 5))
    write_image(tmp_path / "maps/1.png")
    (tmp_path / "maps/2.png").write_bytes(b"")
    (tmp_path / "images/3.png").write_bytes(b"")
    train, val = (open_source(f"maps:{tmp_path}", split) for split in ("train", "val"))
    assert [train.read(index) for index in range(4)] == [None] * 4
    assert val.read(0) is not None


def test_no_pairs_is_an_error_of_one_line(tmp_path: Path) -> None:
    write_image(tmp_path / "images/a.png")
    write_map(tmp_path / "maps/b.png", [1])
    write_image(tmp_path / "elsewhere/c.png")
    with pytest.raises(UserError, match=r"^data: expected images/ and maps/, or ADE20K, .*, got no train image"):
        open_source(f"maps:{tmp_path}", "train")
    with pytest.raises(UserError, match="got 'nowhere'"):
        open_source("maps:nowhere", "train")
