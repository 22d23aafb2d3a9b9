"""Video files read at any frame, with PyAV. T frames, H W pixels.

Once a file is indexed the time of every frame is known, and of every key frame; a frame is decoded from the key frame
before it. Times are in the file's own units; mostly they are evenly spaced, and then two numbers say it all. Where a
file tells times that its frames do not keep (H.264 in AVI) frames are counted from the beginning.
"""

from __future__ import annotations

import hashlib
import os
import sys
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from models.data.folder import folder_index, path_of
from models.data.images import open_regular
from models.data.index import Built, Index, Progress, open_index
from models.data.sample import printable
from models.errors import UserError

_TRIED = 8  # frames decoded to see whether a file's times hold
SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


class VideoFiles:
    """The video files below a folder."""

    def __init__(self, root: Path | str, files: Index | None = None, times: Index | None = None) -> None:
        self._root = root
        self.files = files if files is not None else folder_index(root, SUFFIXES)
        self._times = times if times is not None else _times_index(root, self.files)

    def __reduce__(self) -> tuple[type[VideoFiles], tuple[Path | str, Index, Index]]:
        return VideoFiles, (self._root, self.files, self._times)

    @property
    def fingerprint(self) -> str:
        return self.files.fingerprint

    @property
    def counts(self) -> np.ndarray:  # [clips]
        return self._times["counts"]

    def path(self, clip: int) -> bytes:
        """From the folder on."""
        return path_of(self.files, clip)

    def read(self, clip: int, frames: Sequence[int]) -> list[np.ndarray] | None:  # each [H, W, 3] uint8
        """Frames in ascending order; None if one of them cannot be decoded."""
        path = os.path.join(os.fsencode(self._root), self.path(clip))
        if self._times["counted"][clip]:
            return _decode(path, frames, None, counted=True)
        times = [self._time(clip, frame) for frame in frames]
        first, last = self._times["key_ends"][clip : clip + 2]
        keys = self._times["keys"][first:last]
        before = int(np.searchsorted(keys, times[0], side="right")) - 1
        # where a file cannot be entered at the key frame it is read from its beginning
        for start in (int(keys[before]) if before >= 0 else None, None):
            images = _decode(path, times, start)
            if images is not None:
                return images
        return None

    def _time(self, clip: int, frame: int) -> int:
        first, step = (int(value) for value in self._times["even"][clip])
        if step:
            return first + frame * step
        return int(self._times["uneven"][int(self._times["uneven_begin"][clip]) + frame])


class _Times(NamedTuple):
    """Of one file, ascending."""

    frames: list[int]
    keys: list[int]
    counted: bool = False  # the times are not to be trusted


def _decode(path: bytes, times: Sequence[int], start: int | None, counted: bool = False) -> list[np.ndarray] | None:
    """The frames at these times (or of these numbers), from the key frame at ``start`` on, or from the beginning."""
    av, found, wanted = _av(), dict[int, np.ndarray](), set(times)
    try:
        with open_regular(path) as file, av.open(file) as container:
            stream = _stream(container)
            if start is not None:
                container.seek(start, stream=stream, backward=True)
            for number, frame in enumerate(container.decode(stream)):
                time = number if counted else frame.pts
                if time in wanted:
                    found[time] = frame.to_ndarray(format="rgb24")
                if time is not None and time >= times[-1]:
                    break
    except (av.FFmpegError, OSError, ValueError):
        return None
    if len(found) < len(wanted):
        return None
    return [found[time] for time in times]


def _stream(container: Any) -> Any:
    if not container.streams.video:
        raise ValueError("no video in it")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    return stream


def _scan(path: bytes) -> _Times | None:
    """When frames are shown, from the packets of a file; None if it is no video."""
    av = _av()
    frames, keys, shown = list[int](), list[int](), list[int | None]()
    try:
        with open_regular(path) as file, av.open(file) as container:
            for packet in container.demux(_stream(container)):
                if packet.size and packet.pts is not None and not packet.is_discard:
                    frames.append(packet.pts)
                    if packet.is_keyframe:
                        keys.append(packet.pts)
            container.seek(0)
            shown = [frame.pts for frame, _ in zip(container.decode(video=0), range(_TRIED), strict=False)]
    except (av.FFmpegError, OSError, ValueError):
        if not frames:
            return None  # else what there is before the damage
    frames.sort()
    if shown != frames[: len(shown)]:
        return _Times(list(range(len(frames))), [], counted=True)
    return _Times(frames, sorted(keys)) if frames else None


def _av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise UserError("data: video files need the package av, which is not installed; pip install av") from error
    return av


def _times_index(root: Path | str, files: Index) -> Index:
    digest = np.frombuffer(bytes.fromhex(files.fingerprint), np.uint8)
    return open_index(
        "videos1",
        os.fsencode(os.path.abspath(root)),
        lambda index: np.array_equal(index["files"], digest),
        lambda: _build(root, files, digest),
    )


def _build(root: Path | str, files: Index, digest: np.ndarray) -> Built:
    progress, broken = Progress(f"{printable(os.fsencode(root))}: clips indexed"), list[bytes]()
    counts, even, uneven_begin = array("q"), array("q"), array("q")
    uneven, keys, key_ends, counted = array("q"), array("q"), array("q", [0]), list[bool]()
    for clip in range(len(files["folder_of"])):
        times = _scan(os.path.join(os.fsencode(root), path_of(files, clip)))
        if times is None:
            broken.append(path_of(files, clip))
            times = _Times([], [])
        counts.append(len(times.frames))
        counted.append(times.counted)
        step = _step(times.frames)
        even.extend((times.frames[0] if step else 0, step))
        uneven_begin.append(len(uneven))
        if not step:
            uneven.extend(times.frames)
        keys.extend(times.keys)
        key_ends.append(len(keys))
        progress.say(clip + 1)
    progress.end()
    _tell(root, broken)
    arrays = {
        "files": digest,
        "counts": np.asarray(counts, np.int64),
        "counted": np.asarray(counted, bool),
        "even": np.asarray(even, np.int64).reshape(-1, 2),
        "uneven_begin": np.asarray(uneven_begin, np.int64),
        "uneven": np.asarray(uneven, np.int64),
        "keys": np.asarray(keys, np.int64),
        "key_ends": np.asarray(key_ends, np.int64),
    }
    told = hashlib.sha256(b"".join(value.tobytes() for value in arrays.values()))
    return Built(told.hexdigest()[:32], arrays)


def _step(times: Sequence[int]) -> int:
    """The space between times where it is the same everywhere, else 0."""
    steps = np.unique(np.diff(times)) if len(times) > 1 else np.ones(min(1, len(times)), np.int64)
    return int(steps[0]) if len(steps) == 1 else 0


def _tell(root: Path | str, broken: Iterable[bytes]) -> None:
    names = [printable(name) for name in broken]
    if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        print(f"{printable(os.fsencode(root))}: left out {len(names)} clips, unreadable: {shown}", file=sys.stderr)
