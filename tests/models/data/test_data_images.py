"""Decoding files that are not what they are called. Oracle: the pixels that were written."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.data.embedded import EmbeddedSource
from models.data.images import decode_image, read_image, read_map

# what pillow remarks on files that are then refused
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return EmbeddedSource("val").read(0).image[100:164, 100:180]


def encoded(image: np.ndarray | Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    made = image if isinstance(image, Image.Image) else Image.fromarray(image)
    made.save(file, form, **options)
    return file.getvalue()


def decoded(content: bytes) -> np.ndarray | None:
    return decode_image(io.BytesIO(content))


def test_modes_become_eight_bits_of_colour(photo: np.ndarray) -> None:
    grey = photo[..., 1]
    assert np.array_equal(decoded(encoded(photo, "png")), photo)  # type: ignore[arg-type]
    assert np.array_equal(decoded(encoded(grey, "png")), grey[..., None].repeat(3, 2))  # type: ignore[arg-type]
    sixteen = grey.astype(np.uint16) * 257
    for form in ("png", "tiff"):
        assert np.array_equal(decoded(encoded(sixteen, form)), grey[..., None].repeat(3, 2))  # type: ignore[arg-type]
    palette = Image.fromarray(photo).quantize(16)
    assert np.array_equal(decoded(encoded(palette, "png")), palette.convert("RGB"))  # type: ignore[arg-type]
    cmyk = decoded(encoded(Image.fromarray(photo).convert("CMYK"), "jpeg", quality=95))
    assert cmyk is not None
    assert np.abs(cmyk.astype(int) - photo).mean() < 8
    transparent = np.dstack([photo, np.full(grey.shape, 128, np.uint8)])
    assert np.array_equal(decoded(encoded(transparent, "png")), photo)  # type: ignore[arg-type]
    bits = Image.fromarray(photo).convert("1")
    assert np.array_equal(decoded(encoded(bits, "png")), bits.convert("RGB"))  # type: ignore[arg-type]
    assert decoded(encoded(Image.fromarray(grey.astype(np.float32)), "tiff")) is None  # of unknown range


def test_photos_on_their_side_are_put_upright(photo: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(decoded(encoded(photo, "png", exif=exif)), np.rot90(photo, -1))  # type: ignore[arg-type]


def test_truncated_files_are_unreadable(photo: np.ndarray) -> None:
    for form in ("png", "jpeg", "bmp", "tiff", "webp", "ppm"):
        content = encoded(photo, form)
        assert decoded(content) is not None
        for end in (0, 1, 10, len(content) // 2, len(content) * 9 // 10):
            assert decoded(content[:end]) is None, (form, end)


def test_damaged_files_raise_nothing(photo: np.ndarray) -> None:
    random = np.random.default_rng(0)
    for form in ("png", "jpeg", "bmp", "tiff", "webp", "ppm"):
        content = np.frombuffer(encoded(photo[:16, :16], form), np.uint8)
        for _ in range(150):
            damaged = content.copy()
            damaged[random.integers(min(len(content), 200), size=4)] = random.integers(256, size=4)
            image = decoded(damaged.tobytes())
            assert image is None or image.ndim == 3


def test_a_file_that_would_fill_the_memory_is_unreadable() -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    for side in (10_000, 60_000):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
        rows = zlib.compress(bytes((side // 8 + 1) * side)[: 1 << 27])
        bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
        assert decoded(bomb) is None


def test_no_file_and_no_image(tmp_path: Path) -> None:
    assert read_image(tmp_path / "nowhere.png") is None
    assert read_image(tmp_path) is None
    (tmp_path / "text.png").write_text("not an image")
    assert read_image(tmp_path / "text.png") is None
    assert read_map(tmp_path / "text.png") is None


def test_maps_keep_their_values(tmp_path: Path, photo: np.ndarray) -> None:
    values = np.arange(64 * 80).reshape(64, 80)
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "sixteen.png")
    assert np.array_equal(read_map(tmp_path / "sixteen.png"), values)  # type: ignore[arg-type]
    palette = Image.fromarray((values % 7).astype(np.uint8), "P")
    palette.putpalette([5, 5, 5] * 256)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_map(tmp_path / "palette.png"), values % 7)  # type: ignore[arg-type]
    Image.fromarray(photo).save(tmp_path / "colour.png")
    assert read_map(tmp_path / "colour.png") is None
