"""Where rows come from: a tensor, an array on disk, files, or any re-iterable of batches; chunks in a fixed order."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from vqkernels._core.checks import check_data, check_floating
from vqkernels._core.shown import shown
from vqkernels.kmeans.files import SUFFIXES, RowsFile, open_rows

_HELD = 1 << 24  # numbers in a chunk of a tensor in memory
_READ = 1 << 21  # numbers in a chunk that is read


@runtime_checkable
class Source(Protocol):
    """Rows that can be gone through any number of times, in the same order."""

    @property
    def in_memory(self) -> bool: ...

    def chunks(self) -> Iterator[torch.Tensor]:  # [n, D] each
        ...


def open_source(x: Any) -> Source:
    """The source behind what a user calls x.

    Raises:
        TypeError: if it is none.
        ValueError: if files do not fit each other or cannot be read.
    """
    if isinstance(x, np.memmap):
        if x.dtype.kind != "f":
            raise TypeError(f"x: expected floating point numbers, got {x.dtype}")
        _check_two_dimensional(x)
        return MappedRows(x)
    if isinstance(x, (np.ndarray, torch.Tensor)):
        return HeldRows(_rows(x))
    if isinstance(x, (str, Path)):
        if not str(x) or not (os.path.isdir(x) or Path(x).suffix in SUFFIXES):
            expected = f"a folder, or a file ending in {' or '.join(SUFFIXES)}"
            raise ValueError(f"x: expected {expected}, got {shown(str(x))}")
        return FileRows(find_files(Path(x)))
    if isinstance(x, Source):
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

    @property
    def device(self) -> torch.device:
        return self.rows.device

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
    """A ``numpy.memmap`` of real numbers; pages that were read do not stay in this process."""

    rows: np.memmap[Any, Any]  # [N, D]
    in_memory = False
    device = torch.device("cpu")

    def chunks(self) -> Iterator[torch.Tensor]:
        size = max(1, _READ // self.rows.shape[1])
        mapping = getattr(self.rows, "_mmap", None)
        for start in range(0, len(self.rows), size):
            rows = tensor_of("x", np.array(self.rows[start : start + size]))
            yield rows if rows.is_floating_point() else rows.double()
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
            yield _rows(batch)


def _rows(x: Any) -> torch.Tensor:  # [N, D]
    rows = x if isinstance(x, torch.Tensor) else tensor_of("x", x)
    check_floating("x", rows)
    check_data("x", rows)
    _check_two_dimensional(rows)
    return rows


def _check_two_dimensional(x: Any) -> None:
    if x.ndim != 2 or x.shape[1] < 1:
        raise ValueError(f"x: expected [N, D], got shape {shown(list(x.shape))}")


def tensor_of(name: str, value: Any) -> torch.Tensor:
    """A tensor that shares the memory of an array, where it can; or of whatever NumPy makes an array of."""
    if hasattr(value, "toarray"):
        kind = type(value).__name__
        raise TypeError(f"{name}: expected a dense array, got sparse data ({kind}), which is not supported")
    try:
        array = np.asarray(value)
        array = array.astype(np.float64) if array.dtype == object else array
    except (TypeError, ValueError, OverflowError) as error:
        refusal = TypeError if isinstance(error, TypeError) else ValueError
        raise refusal(f"{name}: expected numbers, got others ({shown(str(error))})") from None
    if array.dtype.kind not in "fiubc":
        raise ValueError(f"{name}: expected numbers, got {array.dtype}")
    # what torch has no kind of number for
    odd = array.dtype == np.longdouble or array.dtype == np.uint64
    native = np.asarray(array, dtype=np.float64 if odd else array.dtype.newbyteorder("="))
    shared = native.flags.writeable and min(native.strides, default=0) >= 0
    return torch.from_numpy(native if shared else native.copy())
