"""Indexes of what lies in folders and files: built once, kept in a cache folder, memory-mapped by every process.

    CACHE/KIND-KEY/FINGERPRINT/{names_bytes.npy, names_offsets.npy, ...}

The cache folder is $VQKERNELS_CACHE, or vqkernels below $XDG_CACHE_HOME or ~/.cache.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

_MAPPED_BYTES = 1 << 16  # smaller arrays are read
_KEEP_DAYS = 7
# a change this soon before or after a scan may not have moved a time stamp
_TICK_SECONDS = 2.0


class Built(NamedTuple):
    """What building an index gives."""

    fingerprint: str  # hexadecimal
    arrays: Mapping[str, np.ndarray]


class Index:
    """Named arrays in a folder, opened when first used; pickles as the path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._arrays: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            file = self.path / f"{name}.npy"
            mapped = file.stat().st_size > _MAPPED_BYTES
            self._arrays[name] = np.load(file, mmap_mode="r" if mapped else None, allow_pickle=False)
        return self._arrays[name]

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.path, self._arrays = path, {}

    @property
    def fingerprint(self) -> str:
        return self.path.name

    @property
    def settled_ns(self) -> int:
        """What was changed after this time, the index may not know."""
        return self.path.stat().st_mtime_ns - int(_TICK_SECONDS * 1e9)

    def names(self, name: str) -> Names:
        return Names(self[f"{name}_bytes"], self[f"{name}_offsets"])


class Names(Sequence[bytes]):
    """Byte strings one after the other in an array."""

    def __init__(self, content: np.ndarray, offsets: np.ndarray) -> None:
        self._content, self._offsets = content, offsets  # [bytes] uint8, [N + 1] int64

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]  # no slices
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}")
        return self._content[self._offsets[index] : self._offsets[index + 1]].tobytes()


def pack(name: str, strings: Iterable[bytes]) -> dict[str, np.ndarray]:
    """The arrays that :meth:`Index.names` reads."""
    content, offsets = bytearray(), [0]
    for string in strings:
        content += string
        offsets.append(len(content))
    return pack_bytes(name, content, offsets)


def pack_bytes(name: str, content: bytearray, offsets: Sequence[int]) -> dict[str, np.ndarray]:
    return {f"{name}_bytes": np.frombuffer(content, np.uint8), f"{name}_offsets": np.asarray(offsets, np.int64)}


def open_index(kind: str, key: bytes, is_current: Callable[[Index], bool], build: Callable[[], Built]) -> Index:
    """The index kept under ``(kind, key)`` if ``is_current`` says so of it, else a new one, kept.

    Args:
        kind: word, and version of the layout of the arrays.
        key: what is indexed.
        is_current: whether an index describes what is there now.
        build: makes the index.
    """
    folder = cache_folder() / f"{kind}-{hashlib.sha256(key).hexdigest()[:16]}"
    for index in _kept(folder):
        try:
            if is_current(index):
                return index
        except (OSError, ValueError, EOFError, KeyError):
            continue  # damaged: made again
    started = time.time_ns()
    built = build()
    try:
        path = _write(folder, built, started)
    except OSError as error:
        folder = Path(tempfile.mkdtemp(prefix="vqkernels-index-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        print(f"{cache_folder()}: cannot keep an index there ({error.strerror}), it is built anew", file=sys.stderr)
        path = _write(folder, built, started)
    return Index(path)


def cache_folder() -> Path:
    if "VQKERNELS_CACHE" in os.environ:
        return Path(os.environ["VQKERNELS_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vqkernels"


class Progress:
    """One line on a terminal that is written over, once a second; a log gets none of it."""

    def __init__(self, text: str) -> None:
        self._text, self._said = text, time.monotonic()
        self._shown = False

    def say(self, count: int) -> None:
        now = time.monotonic()
        if now - self._said > 1 and sys.stderr.isatty():
            self._said, self._shown = now, True
            print(f"\r{self._text}: {count:,}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._shown:
            print(file=sys.stderr)


def _kept(folder: Path) -> list[Index]:
    """Newest first."""
    if not folder.is_dir():
        return []
    paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return [Index(path) for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)]


def _write(folder: Path, built: Built, started_ns: int) -> Path:
    """Write an index, whole or not at all; several processes may do so at once."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / built.fingerprint
    partial = Path(tempfile.mkdtemp(prefix=".", dir=folder))
    try:
        for name, array in built.arrays.items():
            np.save(partial / f"{name}.npy", array)
        partial.chmod(0o755)
        if _sizes(path) != _sizes(partial):
            shutil.rmtree(path, ignore_errors=True)  # damaged
            try:
                partial.rename(path)
            except OSError:
                if not path.exists():  # else another process has just written the same
                    raise
        os.utime(path, ns=(started_ns, started_ns))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _forget_old(folder)
    return path


def _sizes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in folder.iterdir()} if folder.is_dir() else {}


def _forget_old(folder: Path) -> None:
    limit = time.time() - _KEEP_DAYS * 86400
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process removes it too
            if path.stat().st_mtime < limit:
                shutil.rmtree(path, ignore_errors=True)
