"""Street scenes. Oracle: what must hold of any of them."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from models.data import scenes
from models.data.scenes import CLASSES, Picture, render
from models.data.source import open_source
from models.data.street.classes import MARKING, ROAD, SKY
from models.data.street.weather import NAMES
from models.data.street.world import draw_street
from models.errors import UserError

SMALL = (48, 48)


def seeds_of(weather: str, count: int) -> list[int]:
    found = [seed for seed in range(400) if draw_street(seed).weather.name == weather]
    return found[:count]


def digest(seed: int, frame: int) -> str:
    picture = render(seed, frame, SMALL)
    return hashlib.sha256(picture.image.tobytes() + picture.map.tobytes()).hexdigest()


def test_a_frame_depends_on_seed_frame_and_size_alone() -> None:
    there = [(seed, frame) for seed in (2, 9) for frame in (5, 1000)]
    first = [digest(*place) for place in there]
    assert [digest(*place) for place in reversed(there)] == first[::-1]
    assert len(set(first)) == len(first)
    program = f"import sys; sys.path[:] = {sys.path!r}; from test_data_scenes import digest; print(digest(9, 1000))"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == first[-1]


def test_every_class_is_seen_and_the_usual_ones_in_most_scenes() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 15
    seen = np.zeros(len(CLASSES), int)
    for seed in range(40):
        picture = render(seed, 7 * seed, SMALL)
        assert picture.image.shape == (48, 48, 3)
        assert picture.image.dtype == picture.map.dtype == np.uint8
        assert picture.map.shape == (48, 48)
        assert picture.map.max() < len(CLASSES)
        seen += np.bincount(picture.map.ravel(), minlength=len(CLASSES)) > 0
    assert (seen > 0).all()
    for name in ("road", "lane marking", "building", "window", "sky", "vegetation", "car", "pole"):
        assert seen[CLASSES.index(name)] > 30, name


@pytest.mark.parametrize("size", [(8, 8), (37, 53), (96, 40), (40, 96)])
def test_any_size(size: tuple[int, int]) -> None:
    for seed in range(4):
        picture = render(seed, 3, size)
        assert picture.image.shape == (*size, 3)
        assert picture.map.shape == size
    with pytest.raises(ValueError, match="size: expected at least 1 x 1 pixels, got 0 x 5"):
        render(0, 0, (0, 5))


def test_sizes_show_the_same_scene() -> None:
    for seed in range(5):
        small, large = render(seed, 11, (64, 64)), render(seed, 11, (256, 256))
        assert (small.map == large.map[2::4, 2::4]).mean() > 0.85
        shrunk = large.image.reshape(64, 4, 64, 4, 3).mean((1, 3))
        assert np.abs(shrunk - small.image).mean() < 8


def test_frames_follow_one_another_smoothly_and_move() -> None:
    for seed in range(6):
        maps = [render(seed, frame, (64, 64)).map for frame in (20, 21, 60)]
        near, far = (maps[0] != maps[1]).mean(), (maps[0] != maps[2]).mean()
        assert 0 < near < 0.25
        assert near < far
    images = [render(3, frame, (64, 64)).image.astype(int) for frame in range(20, 26)]
    steps = [np.abs(after - before).mean() for before, after in pairwise(images)]
    assert np.mean(steps) < 0.5 * np.abs(images[0] - render(4, 20, (64, 64)).image).mean()


def test_things_stand_where_the_map_says() -> None:
    """At noon paint on the road is brighter than the road, the sky bluer; the camera looks ahead, not down or up."""
    for seed in seeds_of("noon", 6):
        image, labels = render(seed, 4, (128, 128))
        road, marking, sky = (image[labels == number].astype(float).mean(axis=0) for number in (ROAD, MARKING, SKY))
        assert marking.mean() > road.mean() + 30
        assert sky[2] > sky[0]
        rows = np.arange(128)[:, None].repeat(128, 1)
        assert rows[labels == SKY].max() < 75
        assert rows[labels == ROAD].min() > 50


def test_an_edge_of_the_map_is_an_edge_of_the_image() -> None:
    """Where the class changes from one pixel to the next the colour changes more than elsewhere."""
    for seed in range(4):
        image, labels = render(seed, 9, (128, 128))
        change = np.abs(np.diff(image.astype(int), axis=1)).sum(axis=2)
        edge = np.diff(labels.astype(int), axis=1) != 0
        assert change[edge].mean() > 4 * change[~edge].mean()


def test_weathers_look_as_they_are_called() -> None:
    assert {draw_street(seed).weather.name for seed in range(100)} == set(NAMES)
    light = {name: np.mean([render(seed, 2, SMALL).image.mean() for seed in seeds_of(name, 4)]) for name in NAMES}
    assert max(light["night"], light["rainy night"]) < light["dusk"] < light["noon"]
    fog, noon = (
        np.mean([render(seed, 2, SMALL).image[14:26].std() for seed in seeds_of(name, 6)]) for name in ("fog", "noon")
    )
    assert fog < 0.8 * noon  # about the horizon
    red, blue = np.mean([render(seed, 2, SMALL).image.mean((0, 1))[[0, 2]] for seed in seeds_of("sunset", 4)], axis=0)
    assert red > blue


def test_the_source_gives_images_and_clips() -> None:
    source = open_source("scenes:length=30,seed=3,size=40x56", "train")
    assert (len(source), len(open_source("scenes:length=30", "val"))) == (30, 3)
    assert (source.labels, source.map_labels) == (NAMES, CLASSES)
    sample = source.read(7)
    again = pickle.loads(pickle.dumps(source)).read(7)
    assert sample is not None
    assert sample.image.shape == (40, 56, 3)
    assert sample.map.shape == (40, 56)  # type: ignore[union-attr]
    assert np.array_equal(sample.image, again.image)
    assert sample.name == source.name(7)
    number = int(sample.name.split()[1])
    assert NAMES[sample.label] == draw_street(number).weather.name  # type: ignore[index]
    clips = open_source("scenes:frames=3,stride=2,size=32", "train")
    clip = clips.read(1)
    assert clip is not None
    street, first = (int(word) for word in clip.name.split()[1::2])
    for place, frame in enumerate((first, first + 2, first + 4)):
        picture = render(street, frame, (32, 32))
        assert np.array_equal(clip.image[place], picture.image)
        assert np.array_equal(clip.map[place], picture.map)  # type: ignore[index]


def test_small_scenes_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, int]] = []

    def count(street: int, frame: int, size: tuple[int, int]) -> Picture:
        drawn.append(size)
        return render(street, frame, size)

    monkeypatch.setattr(scenes, "render", count)
    for size, times in (("40x12", 1), ("66x8", 2)):
        drawn.clear()
        samples = [open_source(f"scenes:length=3,seed=77,size={size}", "train").read(1) for _ in range(2)]
        assert len(drawn) == times
        first, second = (sample for sample in samples if sample is not None)
        assert np.array_equal(first.image, second.image)
        assert np.array_equal(first.map, second.map)
    with pytest.raises(ValueError, match="read-only"):
        open_source("scenes:length=3,seed=77,size=40x12", "train").read(1).image[0] = 0


def test_other_seeds_and_splits_are_other_streets() -> None:
    sources = [open_source(f"scenes:length=20,seed={seed}", split) for seed in (0, 1) for split in ("train", "val")]
    names = [source.name(index) for source in sources for index in range(len(source))]
    assert len(names) == len(set(names)) == 44
    fingerprints = {source.fingerprint for source in sources}
    assert len(fingerprints) == 4
    assert open_source("scenes:length=20", "train").fingerprint in fingerprints
    with pytest.raises(IndexError, match="index: expected 0 to 19, got 20"):
        sources[0].read(20)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("lenght=3", r"expected an option of scenes \(frames, length, seed, size, stride\), got 'lenght=3'"),
        ("length", "data: scenes: expected length=a whole number from 1 on, got 'length'"),
        ("seed=-3", "expected seed=a whole number, got 'seed=-3'"),
        ("length=0", "data: scenes: expected length=a whole number from 1 on, got 'length=0'"),
        ("size=64x", "expected size=256 or 288x512, got 'size=64x'"),
        ("size=0", "expected size=256 or 288x512, got 'size=0'"),
        ("size=64x4", "expected a size from 8 pixels on, got 64x4"),
        ("frames=2x3", "expected frames=a whole number"),
    ],
)
def test_bad_options_are_named(options: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        open_source(f"scenes:{options}", "train")
