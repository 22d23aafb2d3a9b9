"""Folders of images, with or without a subfolder for each class.

The index holds names, not images: 1.3 million files take less than 200 MB, shared by all processes. Order: the files
of a folder by name, then its subfolders by name. With both ``train/`` and ``val/`` on top these are the split, else
every tenth image is held out. A class is the first folder on the way to an image (below ``train`` and ``val``); a
split has labels if each of its images has a class.
"""

from __future__ import annotations

import hashlib
import os
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from models.data.images import SUFFIXES, read_image
from models.data.index import Built, Index, Progress, open_index, pack, pack_bytes
from models.data.sample import Sample, Source, SplitName, printable, split_of
from models.errors import UserError

_STAMPS_CHECKED = 10_000  # files whose size and time are compared when an index is opened again


class FolderSource(Source):
    """The images of one side of a folder."""

    def __init__(self, root: Path | str, split: SplitName, index: Index | None = None) -> None:
        self._root, self._split = root, split
        self._index = index if index is not None else folder_index(root)
        folders = list(self._index.names("folders"))
        self._positions, self.labels, self._label_of = split_folders(root, folders, self._index["folder_of"], split)

    def __reduce__(self) -> tuple[type[FolderSource], tuple[Path | str, SplitName, Index]]:
        return FolderSource, (self._root, self._split, self._index)

    @property
    def fingerprint(self) -> str:
        return self._index.fingerprint

    def __len__(self) -> int:
        return len(self._positions)

    def name(self, index: int) -> str:
        return printable(self.path(index))

    def read(self, index: int) -> Sample | None:
        path = self.path(index)
        image = read_image(os.path.join(os.fsencode(self._root), path))
        if image is None:
            return None
        folder = self._index["folder_of"][self._positions[index]]
        return Sample(printable(path), image, self._label_of[folder] if self.labels else None)

    def path(self, index: int) -> bytes:
        """Of the file, from the folder on."""
        return path_of(self._index, self._positions[index])


def folder_index(root: Path | str, suffixes: Iterable[str] = SUFFIXES) -> Index:
    """Arrays of the files below a folder that are named like images, or with other suffixes.

    ``folders`` (names, from the root), ``folder_times`` [F] ns, ``folder_of`` [N], ``files`` (names), ``stamps``
    [N, 2] bytes and ns.
    """
    path = os.fsencode(os.path.abspath(root))
    if not os.path.isdir(path):
        raise UserError(f"data: expected 'embedded' or a folder of images, got {str(root)!r}")
    wanted = frozenset(map(os.fsencode, suffixes))
    key = b"\0".join([path, *sorted(wanted)])
    return open_index("folder1", key, lambda index: _is_current(path, index), lambda: _build(path, wanted))


def split_folders(
    root: Path | str, folders: Sequence[bytes], folder_of: np.ndarray, split: SplitName, what: str = "images"
) -> tuple[Sequence[int], tuple[str, ...], tuple[int, ...]]:
    """Positions of one side, names of the classes, and the class of each folder.

    Args:
        root: for messages.
        folders: paths from the root on.
        folder_of: ``[N]``, ascending: in which folder each thing lies.
        split: the side.
        what: the things, for messages.
    """
    tops = [folder.split(b"/")[0] for folder in folders]
    presplit = b"train" in tops and b"val" in tops
    if presplit:
        inside = [number for number, top in enumerate(tops) if top == split.encode()]
        first, last = bisect_left(folder_of, inside[0]), bisect_left(folder_of, inside[-1] + 1)
        positions: Sequence[int] = range(first, last)
    else:
        positions = split_of(len(folder_of), split)
    if not positions:
        wanted = f"{what} below its {split}" if presplit else f"at least 2 {what} to split"
        raise UserError(f"data: expected {wanted} in {printable(os.fsencode(root))}, got {len(folder_of)} in all")
    used = np.bincount(folder_of, minlength=len(folders)) > 0
    own = np.bincount(folder_of[positions[0] : positions[len(positions) - 1] + 1], minlength=len(folders)) > 0
    return positions, *_classes(folders, used, own, presplit)


def path_of(index: Index, position: int) -> bytes:
    """Of a file in a :func:`folder_index`, from the folder on."""
    folder = index.names("folders")[int(index["folder_of"][position])]
    return os.path.join(folder, index.names("files")[position])


def _classes(
    folders: Sequence[bytes], used: np.ndarray, own: np.ndarray, presplit: bool
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names of the classes, and the class of each folder; the same on both sides of a split, if it has them."""
    parts = [folder.split(b"/") if folder else [] for folder in folders]
    if presplit:
        parts = [part[1:] if part and part[0] in (b"train", b"val") else [] for part in parts]
    names = sorted({part[0] for part, holds in zip(parts, used, strict=True) if holds and part})
    number = {name: label for label, name in enumerate(names)}
    if not all(part for part, holds in zip(parts, own, strict=True) if holds):
        return (), ()
    return tuple(printable(name) for name in names), tuple(number.get(part[0], -1) if part else -1 for part in parts)


def _build(root: bytes, suffixes: frozenset[bytes]) -> Built:
    digest, progress = hashlib.sha256(), Progress(f"{printable(root)}: files indexed")
    folders, folder_times, left_out = list[bytes](), array("q"), list[bytes]()
    folder_of, stamps = array("i"), array("q")
    files, offsets = bytearray(), array("q", [0])
    for folder, time_ns, found in _walk(root, suffixes, left_out):
        for name, size, changed_ns in found:
            digest.update(b"%s/%s\0%d\0%d\0" % (folder, name, size, changed_ns))
            files += name
            offsets.append(len(files))
            folder_of.append(len(folders))
            stamps.extend((size, changed_ns))
            progress.say(len(folder_of))
        folders.append(folder)
        folder_times.append(time_ns)
    progress.end()
    if left_out:
        shown = ", ".join(map(printable, left_out[:3])) + (", ..." if len(left_out) > 3 else "")
        print(f"{printable(root)}: left out {len(left_out)} folders, unreadable: {shown}", file=sys.stderr)
    arrays = {
        **pack("folders", folders),
        **pack_bytes("files", files, offsets),
        "folder_times": np.asarray(folder_times, np.int64),
        "folder_of": np.asarray(folder_of, np.int32),
        "stamps": np.asarray(stamps, np.int64).reshape(-1, 2),
    }
    return Built(digest.hexdigest()[:32], arrays)


def _walk(
    root: bytes, suffixes: frozenset[bytes], left_out: list[bytes]
) -> Iterator[tuple[bytes, int, Iterator[tuple[bytes, int, int]]]]:
    """Every folder, its time, and name, size and time of its images; each folder once, however links loop."""
    pending, seen = [b""], set[tuple[int, int]]()
    while pending:
        folder = pending.pop()
        path = os.path.join(root, folder)
        names, sizes, times, inner = list[bytes](), array("q"), array("q"), list[bytes]()
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                for entry in entries:
                    if _is_folder(entry):
                        inner.append(entry.name)
                    elif os.path.splitext(entry.name)[1].lower() in suffixes and _is_file(entry):
                        of_file = entry.stat()
                        names.append(entry.name)
                        sizes.append(of_file.st_size)
                        times.append(of_file.st_mtime_ns)
        except OSError:
            left_out.append(folder)
            continue
        order = sorted(range(len(names)), key=names.__getitem__)
        yield folder, status.st_mtime_ns, ((names[i], sizes[i], times[i]) for i in order)
        pending += (os.path.join(folder, name) for name in sorted(inner, reverse=True))


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[bytes]) -> bool:
    """A regular file: reading a pipe or a socket would wait for ever."""
    try:
        return entry.is_file()
    except OSError:
        return False


def _is_current(root: bytes, index: Index) -> bool:
    """No folder has changed, and of the files none of those looked at: all of them, or an even spread of many."""
    folders, times, settled_ns = index.names("folders"), index["folder_times"], index.settled_ns
    for folder, time_ns in zip(folders, times, strict=True):
        if time_ns > settled_ns or os.stat(os.path.join(root, folder)).st_mtime_ns != time_ns:
            return False
    files, folder_of, stamps = index.names("files"), index["folder_of"], index["stamps"]
    count = len(files)
    for position in np.linspace(0, count - 1, min(count, _STAMPS_CHECKED), dtype=np.int64).tolist():
        status = os.stat(os.path.join(root, folders[int(folder_of[position])], files[position]))
        if (status.st_size, status.st_mtime_ns) != tuple(stamps[position].tolist()):
            return False
    return True
