"""Crops. Oracle: windows of an array in which every pixel differs from every other; pillow for scaling."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from models.data.sample import Sample
from models.data.transforms import Crop, DrawView, TenCrop

HEIGHT, WIDTH = 40, 50


def numbered(frames: int | None = None, label: int | None = 7) -> Sample:
    """Every pixel differs from every other, and the map numbers them."""
    count = HEIGHT * WIDTH * (frames or 1)
    number = np.arange(count)
    pixels = np.stack([number % 256, number // 256, number % 7], axis=-1).astype(np.uint8)
    shape = (HEIGHT, WIDTH) if frames is None else (frames, HEIGHT, WIDTH)
    return Sample("numbered", pixels.reshape(*shape, 3), label, number.reshape(shape))


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("frames", [None, 3])
def test_image_and_map_and_frames_are_cut_alike(frames: int | None) -> None:
    sample, seen = numbered(frames), set()
    for seed in range(300):
        arrays = Crop(size=(16, 20), flip=True)(sample, random(seed))
        assert arrays is not None
        assert arrays["label"] == 7
        assert arrays["image"].shape == ((3, 16, 20) if frames is None else (3, 3, 16, 20))
        pixels, number = np.moveaxis(arrays["image"], -3, -1), arrays["map"]
        assert np.array_equal(pixels, sample.image.reshape(-1, 3)[number])
        one = number if frames is None else number[0]
        if frames is not None:
            assert np.array_equal(number - one, np.arange(3)[:, None, None] * HEIGHT * WIDTH + 0 * number)
        mirrored = one[0, 0] > one[0, 1]
        upright = one[:, ::-1] if mirrored else one
        top, left = divmod(int(upright[0, 0]), WIDTH)
        assert np.array_equal(upright, sample.map.reshape(-1, HEIGHT, WIDTH)[0, top : top + 16, left : left + 20])  # type: ignore[union-attr]
        seen.add((mirrored, top, left))
    # 300 draws of 2 x 25 x 31 places
    assert len(seen) > 200
    assert {place[0] for place in seen} == {False, True}
    assert {place[1] for place in seen} >= {0, 24}
    assert {place[2] for place in seen} >= {0, 30}


def test_without_flip_nothing_is_mirrored() -> None:
    maps = [Crop(size=16)(numbered(), random(seed))["map"] for seed in range(40)]  # type: ignore[index]
    assert all(number[0, 0] < number[0, 1] for number in maps)


def test_center_crop_takes_the_middle() -> None:
    arrays = Crop(size=(20, 11), place="center")(numbered(), random())
    assert arrays is not None
    assert np.array_equal(arrays["map"], numbered().map[10:30, 19:30])  # type: ignore[index]
    whole = Crop(size=(HEIGHT, WIDTH), place="center")(numbered(), random())
    assert np.array_equal(whole["image"].transpose(1, 2, 0), numbered().image)  # type: ignore[index]


def test_the_shorter_side_is_scaled_first() -> None:
    sample = numbered()
    arrays = Crop(size=(20, 25), resize=20, place="center")(sample, random())
    assert arrays is not None
    expected = Image.fromarray(sample.image).resize((25, 20), Image.Resampling.BICUBIC)
    assert np.array_equal(arrays["image"].transpose(1, 2, 0), expected)
    nearest = Image.fromarray(sample.map.astype(np.int32)).resize((25, 20), Image.Resampling.NEAREST)  # type: ignore[union-attr]
    assert np.array_equal(arrays["map"], nearest)
    high = Crop(size=60, resize=60, place="center")(Sample("high", sample.image.transpose(1, 0, 2)), random())
    assert high is not None
    assert high["image"].shape == (3, 60, 60)
    assert "map" not in high
    assert "label" not in high


def test_a_range_of_sizes_is_drawn_from() -> None:
    flat = Sample("flat", np.zeros((20, 20, 3), np.uint8), map=np.arange(400).reshape(20, 20))
    seen = {len(np.unique(Crop(size=20, resize=(20, 40))(flat, random(seed))["map"])) for seed in range(60)}  # type: ignore[index]
    # the larger the image is made, the fewer of its pixels a crop shows
    assert max(seen) == 400
    assert min(seen) <= 121
    assert len(seen) > 5


def test_an_image_smaller_than_the_crop_is_not_used() -> None:
    assert Crop(size=41)(numbered(), random()) is None
    assert Crop(size=(40, 51))(numbered(), random()) is None
    assert Crop(size=(40, 50))(numbered(), random()) is not None


def test_ten_crops_are_corners_and_middle_and_their_mirror_images() -> None:
    sample = numbered()
    arrays = TenCrop(size=32, ratio=1.25)(sample, random())
    assert arrays is not None
    assert arrays["image"].shape == (10, 3, 32, 32)
    assert arrays["label"] == 7
    views = arrays["image"].transpose(0, 2, 3, 1)
    square = sample.image[:, 5:45]  # 40 x 40, as it is
    for view, (top, left) in zip(views, [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)], strict=False):
        assert np.array_equal(view, square[top : top + 32, left : left + 32])
    assert np.array_equal(views[5:], views[:5, :, ::-1])
    for ratio in (1.05, 1.1):
        assert TenCrop(size=256, ratio=ratio)(sample, random())["image"].shape == (10, 3, 256, 256)  # type: ignore[index]


def test_one_view_of_codes_or_latents_is_drawn() -> None:
    codes = np.arange(10 * 6, dtype=np.uint8).reshape(10, 2, 3)
    seen = set()
    for seed in range(100):
        arrays = DrawView()(Sample("codes", codes, 3), random(seed))
        assert arrays is not None
        assert arrays["codes"].dtype == np.int64
        assert arrays["label"] == 3
        view = int(arrays["codes"][0, 0]) // 6
        assert np.array_equal(arrays["codes"], codes[view])
        seen.add(view)
    assert seen == set(range(10))
    latents = DrawView()(Sample("latents", np.ones((1, 4, 2, 2), np.float16)), random())
    assert latents is not None
    assert list(latents) == ["latents"]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Crop(size=0), "size: expected at least 1 pixel, got 0"),
        (lambda: Crop(size=64, resize=32), "resize: expected 64 pixels or more, got 32"),
        (lambda: Crop(size=64, resize=(80, 70)), "resize: expected 64 pixels or more"),
        (lambda: TenCrop(size=64, ratio=0.9), "size, ratio: expected at least 1 and 1, got 64 and 0.9"),
        (lambda: TenCrop(size=8)(numbered(frames=2), random()), "image: expected .H, W, 3., got .2, 40, 50, 3."),
    ],
)
def test_bad_arguments_are_named(make: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()  # type: ignore[operator]
