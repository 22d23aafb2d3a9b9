"""WebDataset tar shards, read at random: ``shards:/data/train-{000..146}.tar``.

The headers of the tar files are scanned once; the index knows where every image lies, so that no shard is read from
its beginning again and a training resumes at any sample. A sample is the files of one name up to its first dot:
an image, and its class as a number in ``.cls`` or as ``label`` in ``.json``.
"""

from __future__ import annotations

import glob
import hashlib
import io
import itertools
import json
import os
import re
import stat
import sys
import tarfile
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from models.data.images import SUFFIXES, decode_image, open_regular
from models.data.index import Built, Index, Progress, open_index, pack
from models.data.sample import Sample, Source, SplitName, printable, split_of
from models.errors import UserError

_OPEN_FILES = 64
_NOT_A_TAR = (tarfile.TarError, OSError, EOFError, ValueError)


class ShardSource(Source):
    """The images of one side; with ``{split}`` in the pattern its own shards, else every tenth sample is held out."""

    def __init__(self, pattern: str, split: SplitName, index: Index | None = None) -> None:
        self._pattern, self._split = pattern, split
        self._paths = expand(pattern, split)
        self._index = index if index is not None else _open(self._paths)
        count = len(self._index["shard_of"])
        self._positions: Sequence[int] = range(count) if "{split}" in pattern else split_of(count, split)
        if not self._positions:
            raise UserError(f"data: expected at least 2 samples in the shards {pattern!r} to split, got {count}")
        labels = self._index["label"]
        self.labels = tuple(map(str, range(int(labels.max()) + 1))) if labels.min() >= 0 else ()
        self._files = _Files(self._paths)

    def __reduce__(self) -> tuple[type[ShardSource], tuple[str, SplitName, Index]]:
        return ShardSource, (self._pattern, self._split, self._index)

    @property
    def fingerprint(self) -> str:
        return self._index.fingerprint

    def __len__(self) -> int:
        return len(self._positions)

    def name(self, index: int) -> str:
        position = self._positions[index]
        shard = os.path.basename(self._paths[self._index["shard_of"][position]])
        return f"{printable(shard)}/{printable(self._index.names('keys')[position])}"

    def read(self, index: int) -> Sample | None:
        position = self._positions[index]
        content = self._files.read(
            int(self._index["shard_of"][position]),
            int(self._index["offset"][position]),
            int(self._index["size"][position]),
        )
        image = None if content is None else decode_image(io.BytesIO(content))
        if image is None:
            return None
        return Sample(self.name(index), image, int(self._index["label"][position]) if self.labels else None)


def expand(pattern: str, split: SplitName) -> list[str]:
    """Paths of a pattern: ``{000..146}`` counts, ``{a,b}`` lists, ``{split}`` is train or val, ``*`` is any name."""
    parts = re.split(r"\{([^{}]*)\}", pattern.replace("{split}", split))  # text, inside, text, ...
    options = [[part] if number % 2 == 0 else _inside(part) for number, part in enumerate(parts)]
    paths = list[str]()
    for chosen in itertools.product(*options):
        path = os.path.abspath("".join(chosen))
        found = sorted(glob.glob(path)) if glob.has_magic(path) else [path]
        missing = next((name for name in found or [path] if not os.path.exists(name)), None)
        if missing is not None:
            raise UserError(f"data: expected tar shards at {pattern!r}, got no {missing}")
        paths += found
    return paths


def _inside(braces: str) -> list[str]:
    counted = re.fullmatch(r"(\d+)\.\.(\d+)", braces, re.ASCII)
    if counted is None:
        return braces.split(",")
    first, last = counted.groups()
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]


class _Files:
    """The newest few open files of a process."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()

    def read(self, shard: int, offset: int, size: int) -> bytes | None:
        try:
            if shard not in self._open:
                self._open[shard] = open_regular(self._paths[shard])
                if len(self._open) > _OPEN_FILES:
                    self._open.popitem(last=False)[1].close()
            self._open.move_to_end(shard)
            content = os.pread(self._open[shard].fileno(), size, offset)
        except OSError:
            return None
        return content if len(content) == size else None


def _open(paths: Sequence[str]) -> Index:
    stamps = list[tuple[int, int]]()
    for path in paths:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"data: expected an uncompressed tar file at {path}, got no regular file")
        stamps.append((status.st_size, status.st_mtime_ns))
    key = b"\0".join(os.fsencode(path) for path in paths)

    def is_current(index: Index) -> bool:
        settled = all(time_ns <= index.settled_ns for _, time_ns in stamps)
        return settled and np.array_equal(index["stamps"], np.asarray(stamps, np.int64))

    return open_index("shards1", key, is_current, lambda: _build(paths, stamps))


class _Member(NamedTuple):
    """A file inside a tar file."""

    key: str
    suffix: str
    offset: int
    size: int


def _build(paths: Sequence[str], stamps: Sequence[tuple[int, int]]) -> Built:
    digest, progress = hashlib.sha256(), Progress("tar shards, samples indexed")
    shard_of, offset, size, label = array("i"), array("q"), array("q"), array("q")
    keys, cut = list[bytes](), list[str]()
    for shard, (path, (bytes_, time_ns)) in enumerate(zip(paths, stamps, strict=True)):
        digest.update(b"%s\0%d\0%d\0" % (os.fsencode(os.path.basename(path)), bytes_, time_ns))
        with open_regular(path) as file:
            for key, grouped in itertools.groupby(_members(path, cut), lambda member: member.key):
                group = list(grouped)
                image = next((member for member in group if member.suffix in SUFFIXES), None)
                if image is None:
                    continue
                keys.append(key.encode("utf-8", "surrogateescape"))
                shard_of.append(shard)
                offset.append(image.offset)
                size.append(image.size)
                label.append(_label(file, group))
                progress.say(len(keys))
    progress.end()
    if cut:
        shown = ", ".join(map(printable, cut[:3])) + (", ..." if len(cut) > 3 else "")
        print(f"data: {len(cut)} shards are cut short, used up to there: {shown}", file=sys.stderr)
    if not keys:
        raise UserError(f"data: expected images in {len(paths)} tar shards from {paths[0]} on, got none")
    arrays = {
        **pack("keys", keys),
        "shard_of": np.asarray(shard_of, np.int32),
        "offset": np.asarray(offset, np.int64),
        "size": np.asarray(size, np.int64),
        "label": np.asarray(label, np.int64),
        "stamps": np.asarray(stamps, np.int64),
    }
    return Built(digest.hexdigest()[:32], arrays)


def _members(path: str, cut: list[str]) -> Iterator[_Member]:
    """The regular files in a tar file that are all there; a shard that ends too early is added to ``cut``."""
    found, end = False, os.path.getsize(path)
    try:
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # a list of all of them would need gigabytes
                if member.offset_data + member.size > end:
                    cut.append(path)
                    return
                found = True
                folder, name = os.path.split(member.name)
                stem, dot, rest = name.partition(".")
                if member.isreg() and not member.issparse() and dot:
                    suffix = "." + rest.rpartition(".")[2].lower()
                    yield _Member(os.path.join(folder, stem), suffix, member.offset_data, member.size)
            # tarfile takes half a header, or none, for the end; the end is a block of zeros
            if os.pread(file.fileno(), tarfile.BLOCKSIZE, tar.offset) != bytes(tarfile.BLOCKSIZE):
                cut.append(path)
    except _NOT_A_TAR as error:
        if not found:
            raise UserError(f"data: expected an uncompressed tar file at {path}, got none ({error})") from error
        cut.append(path)


def _label(file: BinaryIO, group: Sequence[_Member]) -> int:
    """-1: none."""
    for member in group:
        if member.suffix in (".cls", ".json"):
            text = os.pread(file.fileno(), member.size, member.offset)
            try:
                value = int(text) if member.suffix == ".cls" else json.loads(text).get("label")
            except (ValueError, AttributeError):
                continue
            if isinstance(value, int) and value >= 0:
                return value
    return -1
