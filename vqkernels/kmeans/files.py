"""Files of rows, read a few at a time: ``.npy`` and ``.safetensors``. Reading maps nothing into memory."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeGuard

import numpy as np
import torch

SUFFIXES = (".npy", ".safetensors")
_NPY = {"<f4": torch.float32, "<f8": torch.float64, "<f2": torch.float16}
# what torch has no number for is converted when it is read
_CONVERTED = {">f4": torch.float32, ">f8": torch.float64, ">f2": torch.float16}
if np.dtype(np.longdouble).itemsize > 8:
    _CONVERTED[np.dtype(np.longdouble).str] = torch.float64
# what a header of format 1, 2 or 3 says of rows of numbers: a Python literal, not worth a parser of Python
_NPY_MAGIC = b"\x93NUMPY"
_NPY_ENTRIES = {
    "descr": re.compile(r"""["']descr["']\s*:\s*["']([^"']*)["']"""),
    "fortran_order": re.compile(r"""["']fortran_order["']\s*:\s*(True|False)"""),
    "shape": re.compile(r"""["']shape["']\s*:\s*\(([\d\s,]*)\)"""),
}
_SAFETENSORS = {"F32": torch.float32, "F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16}
_LONGEST_HEADER = 100_000_000


class _Layout(NamedTuple):
    """What a header says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # of its first number in the file, in bytes
    columns: bool = False  # its columns lie together, not its rows
    stored: np.dtype[Any] | None = None  # of a number in the file, where it is not that of ``dtype``

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize if self.stored is None else self.stored.itemsize


@dataclass(frozen=True)
class RowsFile:
    """One tensor ``[rows, dim]`` in a file."""

    path: Path
    dtype: torch.dtype
    rows: int
    dim: int
    offset: int  # of the first row, in bytes
    column: int | None = None  # bytes from one column to the next, where columns lie together
    stored: np.dtype[Any] | None = None  # of a number in the file, where it is not that of ``dtype``

    def part(self, start: int, stop: int) -> RowsFile:
        """Some of the rows, as if they were the file."""
        return replace(self, rows=stop - start, offset=self._place(start))

    def read(self, start: int, stop: int) -> torch.Tensor:  # [stop - start, D]
        with self.path.open("rb", buffering=0) as file:
            if self.column is None:
                rows = torch.empty(stop - start, self.dim, dtype=self.dtype)
                self._fill(file, self._place(start), rows)
                return rows
            columns = torch.empty(self.dim, stop - start, dtype=self.dtype)
            for number, column in enumerate(columns):
                self._fill(file, self._place(start) + number * self.column, column)
            return columns.T.contiguous()

    def _place(self, row: int) -> int:
        itemsize = self.dtype.itemsize if self.stored is None else self.stored.itemsize
        return self.offset + row * itemsize * (self.dim if self.column is None else 1)

    def _fill(self, file: FileIO, place: int, numbers: torch.Tensor) -> None:
        if self.stored is None:
            self._read_into(file, place, memoryview(numbers.view(torch.uint8).numpy().data).cast("B"))
        else:
            given = np.empty(tuple(numbers.shape), dtype=self.stored)
            self._read_into(file, place, memoryview(given.view(np.uint8).data).cast("B"))
            numbers.numpy()[...] = given

    def _read_into(self, file: FileIO, place: int, view: memoryview) -> None:
        file.seek(place)
        while view:
            if not (got := file.readinto(view)):
                raise ValueError(f"{self.path}: expected {self.rows} rows, but the file ends before")
            view = view[got:]


def open_rows(path: Path, key: str | None = None) -> RowsFile:
    """Look at the header of a file.

    Args:
        path: the file.
        key: name of the tensor in a ``.safetensors`` file that holds several.

    Raises:
        ValueError: if it is not a file of rows, or shorter than its header says, in one line.
    """
    # a pipe would wait for somebody to write
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path}: expected a regular file, got something else")
    with path.open("rb") as file:
        try:
            layout = _npy_layout(file) if path.suffix == ".npy" else _safetensors_layout(file, key)
        except ValueError as error:
            raise ValueError(f"{path}: not a readable {path.suffix} file of floating point rows ({error})") from error
        size = os.fstat(file.fileno()).st_size
    dtype, shape, offset, columns, stored = layout
    if len(shape) != 2 or shape[1] < 1:
        raise ValueError(f"{path}: expected rows [N, D], got shape {list(shape)}")
    needed = offset + math.prod(shape) * layout.itemsize
    if size < needed:
        raise ValueError(f"{path}: expected {needed} bytes for shape {list(shape)}, got {size}")
    column = shape[0] * layout.itemsize if columns else None
    return RowsFile(path, dtype, shape[0], shape[1], offset, column, stored)


def read_metadata(path: Path) -> dict[str, str]:
    """The texts in a ``.safetensors`` file."""
    with path.open("rb") as file:
        metadata = _json_header(file).get("__metadata__")
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: expected texts in its header, got none")
    return metadata


def names_in(path: Path) -> list[str]:
    """The names of the tensors in a ``.safetensors`` file."""
    with path.open("rb") as file:
        return [name for name in _json_header(file) if name != "__metadata__"]


def save_safetensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write float32 tensors, whole or not at all."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def write(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().float().contiguous().numpy().tobytes())

    save_whole(path, write)


def save_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside and move it in place: a process killed at any time leaves the old file or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _npy_layout(file: BinaryIO) -> _Layout:
    start = file.read(8)
    if start[:6] != _NPY_MAGIC or start[6:7] not in (b"\1", b"\2", b"\3"):
        raise ValueError("it begins like none")
    header = _header(file, 2 if start[6] == 1 else 4).decode("latin1")
    found = {name: pattern.search(header) for name, pattern in _NPY_ENTRIES.items()}
    absent = [name for name, match in found.items() if match is None]
    if absent:
        raise ValueError(f"no header that says {' and '.join(absent)} of numbers")
    descr, order, sizes = (match.group(1) for match in found.values() if match is not None)
    dtype, stored = _of_kind(_NPY | _CONVERTED, descr), np.dtype(descr) if descr in _CONVERTED else None
    shape = tuple(int(size) for size in sizes.split(",") if size.strip())
    return _Layout(dtype, shape, file.tell(), order == "True", stored)


def _safetensors_layout(file: BinaryIO, key: str | None) -> _Layout:
    header = _json_header(file)
    header.pop("__metadata__", None)
    if key is None and len(header) != 1:
        raise ValueError(f"it holds {len(header)} tensors, not one")
    if key is not None and key not in header:
        raise ValueError(f"it holds no tensor {key!r}, but {', '.join(header) or 'none'}")
    entry = next(iter(header.values())) if key is None else header[key]
    told = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = _of_kind(_SAFETENSORS, told.get("dtype")), told.get("shape"), told.get("data_offsets")
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2):
        raise ValueError(f"shape {shape} and offsets {offsets} are none")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"shape {shape} of {dtype} does not fill the bytes {offsets[0]} to {offsets[1]}")
    return _Layout(dtype, tuple(shape), file.tell() + offsets[0])


def _json_header(file: BinaryIO) -> dict[str, Any]:
    try:
        header = json.loads(_header(file, 8))
    except RecursionError:
        raise ValueError("its header is nested too deep") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    return header


def _header(file: BinaryIO, digits: int) -> bytes:
    """The header, after its length in so many bytes."""
    length = int.from_bytes(file.read(digits), "little")
    left = os.fstat(file.fileno()).st_size - file.tell()
    if length > min(left, _LONGEST_HEADER):
        raise ValueError(f"a header of {length} bytes, where {left} are left")
    return file.read(length)


def _of_kind(known: Mapping[str, torch.dtype], name: object) -> torch.dtype:
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"numbers of type {name!r}, not {', '.join(known)}")
    return known[name]


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)
