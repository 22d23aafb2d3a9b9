"""Photographs. Oracle: the pixels themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.data.photos import (
    Photo,
    embedded_photos,
    image_folder,
    load_photos,
    to_image,
    to_tensor,
)
from models.errors import UserError


def test_embedded_photos_are_colour_photographs_split_whole() -> None:
    photos = embedded_photos()
    assert len({photo.name for photo in photos}) == len(photos) == 10
    assert {photo.name for photo in photos if photo.split == "val"} == {"chelsea", "flower"}
    for photo in photos:
        height, width, channels = photo.image.shape
        assert photo.image.dtype == np.uint8
        assert (channels, min(height, width) >= 300) == (3, True)


def test_every_pixel_value_survives_the_round_trip() -> None:
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = to_tensor(image)
    assert tensor.shape == (1, 3, 16, 16)
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert np.array_equal(to_image(tensor[0]), image)


def test_to_image_clips() -> None:
    assert to_image(torch.tensor([-3.0, 3.0, 0.0]).reshape(3, 1, 1)).tolist() == [[[0, 255, 128]]]


def numbered_photo(split: str = "train") -> Photo:
    """Every pixel differs from every other, so a crop tells where it was taken."""
    number = np.arange(40 * 50, dtype=np.uint16)
    pixels = np.stack([number % 256, number // 256, np.full_like(number, 7)], axis=-1)
    return Photo("numbered", pixels.astype(np.uint8).reshape(40, 50, 3), split)


def test_unreadable_images_are_skipped_counted_and_named(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readable = sorted(photo_folder.glob("*.png"))[:3]
    (tmp_path / "deep").mkdir()
    for file in readable:
        (tmp_path / "deep" / file.name).write_bytes(file.read_bytes())
    whole = tmp_path / "whole.jpg"
    Image.open(readable[0]).save(whole)
    jpeg, png = whole.read_bytes(), readable[0].read_bytes()
    whole.unlink()
    (tmp_path / "a_truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (tmp_path / "b_truncated.png").write_bytes(png[: len(png) // 2])
    (tmp_path / "c_text.png").write_text("not a photograph")
    (tmp_path / "d_empty.jpg").touch()
    (tmp_path / "notes.txt").write_text("not looked at")

    photos = image_folder(tmp_path)

    assert [photo.name for photo in photos] == [f"deep/{file.name}" for file in readable]
    assert [photo.split for photo in photos] == ["train", "train", "val"]
    for photo, file in zip(photos, readable, strict=True):
        assert np.array_equal(photo.image, np.array(Image.open(file)))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "skipped 4 of 7 images, unreadable: a_truncated.jpg, b_truncated.png, c_text.png, ..." in said


def test_grey_palette_and_rotated_images_become_upright_colour(tmp_path: Path) -> None:
    source = numbered_photo().image
    Image.fromarray(source[..., 0]).save(tmp_path / "grey.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: rotate by 90 degrees to look at it
    Image.fromarray(source).save(tmp_path / "side.png", exif=exif)
    grey, side = (photo.image for photo in image_folder(tmp_path))
    assert np.array_equal(grey, source[..., [0, 0, 0]])
    assert np.array_equal(side, np.rot90(source, -1))


def test_every_tenth_image_is_held_out(tmp_path: Path) -> None:
    for number in range(21):
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(tmp_path / f"{number:02d}.png")
    held_out = [photo.name for photo in image_folder(tmp_path) if photo.split == "val"]
    assert held_out == ["09.png", "19.png"]


def test_a_folder_without_two_images_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data: expected at least 2 readable images below .*, got 0"):
        load_photos(str(tmp_path))
    with pytest.raises(UserError, match="data: expected 'embedded' or a folder of images, got 'nowhere'"):
        load_photos("nowhere")
