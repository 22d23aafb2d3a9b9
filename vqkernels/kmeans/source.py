"""Where rows come from: a tensor, an array on disk, files, or any re-iterable of batches; chunks in a fixed order."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from vqkernels._core.checks import check_floating
from vqkernels.kmeans.files import SUFFIXES, RowsFile, open_rows

_HELD = 1 << 24  # numbers in a chunk of a tensor in memory
_READ = 1 << 21  # numbers in a chunk that is read


class Source(Protocol):
    """Rows that can be gone through any number of times, in the same order."""

    in_memory: bool

    def chunks(self) -> Iterator[torch.Tensor]:  # [n, D] each
        ...


def open_source(x: Any) -> Source:
    """The source behind what a user calls x.

    Raises:
        TypeError: if it is none.
        ValueError: if files do not fit each other or cannot be read.
    """
    if isinstance(x, np.memmap):
        return MappedRows(_two_dimensional(x))
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(x if x.flags.writeable else x.copy())
    if isinstance(x, torch.Tensor):
        check_floating("x", x)
        return HeldRows(_two_dimensional(x))
    if isinstance(x, (str, Path)):
        return FileRows(find_files(Path(x)))
    if isinstance(x, (HeldRows, MappedRows, FileRows, BatchRows)):
        return x
    if isinstance(x, Iterable) and not isinstance(x, Iterator):
        return BatchRows(x)
    kinds = "a tensor, an array, a path or an iterable of batches that can be gone through again"
    raise TypeError(f"x: expected {kinds}, got {type(x).__name__}")


def find_files(path: Path, key: str | None = None) -> tuple[RowsFile, ...]:
    """A file of rows, or those in a folder by name; all of one dimension."""
    if path.is_dir():
        paths = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and not file.name.startswith("."))
        if not paths:
            raise ValueError(f"{path}: expected {' or '.join(SUFFIXES)} files in this folder, got none")
    elif path.suffix in SUFFIXES:
        paths = [path]
    else:
        raise ValueError(f"{path}: expected a folder or a file ending in {' or '.join(SUFFIXES)}")
    files = tuple(open_rows(file, key) for file in paths)
    odd = next((file for file in files if file.dim != files[0].dim), None)
    if odd is not None:
        raise ValueError(f"{odd.path}: expected rows of {files[0].dim} numbers as in {files[0].path}, got {odd.dim}")
    return files


@dataclass(frozen=True)
class HeldRows:
    """A tensor in memory, on any device."""

    rows: torch.Tensor  # [N, D]
    in_memory = True

    def chunks(self) -> Iterator[torch.Tensor]:
        yield from self.rows.split(max(1, _HELD // self.rows.shape[1]))


@dataclass(frozen=True)
class FileRows:
    """Files one after the other."""

    files: tuple[RowsFile, ...]
    device: str = "cpu"
    in_memory = False

    def chunks(self) -> Iterator[torch.Tensor]:
        for file in self.files:
            size = max(1, _READ // file.dim)
            for start in range(0, file.rows, size):
                yield file.read(start, min(start + size, file.rows)).to(self.device)


@dataclass(frozen=True)
class MappedRows:
    """A ``numpy.memmap``; pages that were read do not stay in this process."""

    rows: Any  # [N, D]
    in_memory = False

    def chunks(self) -> Iterator[torch.Tensor]:
        size = max(1, _READ // self.rows.shape[1])
        mapping = self.rows._mmap
        for start in range(0, len(self.rows), size):
            yield torch.from_numpy(np.array(self.rows[start : start + size]))
            # pages of a private mapping may hold changes of their own
            if self.rows.mode != "c" and isinstance(mapping, mmap.mmap):
                mapping.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class BatchRows:
    """Batches ``[n, D]``, tensors or arrays."""

    batches: Iterable[Any]
    in_memory = False

    def chunks(self) -> Iterator[torch.Tensor]:
        for batch in self.batches:
            rows = torch.as_tensor(batch)
            check_floating("x", rows)
            yield _two_dimensional(rows)


def _two_dimensional(x: Any) -> Any:
    if x.ndim != 2 or x.shape[1] < 1:
        raise ValueError(f"x: expected [N, D], got shape {list(x.shape)}")
    return x
