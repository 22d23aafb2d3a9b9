"""Files of rows, read a few at a time: ``.npy`` and ``.safetensors``. Reading maps nothing into memory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

SUFFIXES = (".npy", ".safetensors")
_NPY = {"<f4": torch.float32, "<f8": torch.float64, "<f2": torch.float16}
_SAFETENSORS = {"F32": torch.float32, "F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16}
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class RowsFile:
    """One tensor ``[rows, dim]`` in a file."""

    path: Path
    dtype: torch.dtype
    rows: int
    dim: int
    offset: int  # of the first row, in bytes

    def part(self, start: int, stop: int) -> RowsFile:
        """Some of the rows, as if they were the file."""
        return replace(self, rows=stop - start, offset=self.offset + start * self.dim * self.dtype.itemsize)

    def read(self, start: int, stop: int) -> torch.Tensor:  # [stop - start, D]
        rows = torch.empty(stop - start, self.dim, dtype=self.dtype)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset + start * self.dim * self.dtype.itemsize)
            view = memoryview(rows.view(torch.uint8).numpy().data).cast("B")
            while view:
                if not (got := file.readinto(view)):
                    raise ValueError(f"{self.path}: expected {self.rows} rows, but the file ends before")
                view = view[got:]
        return rows


def open_rows(path: Path, key: str | None = None) -> RowsFile:
    """Look at the header of a file.

    Args:
        path: the file.
        key: name of the tensor in a ``.safetensors`` file that holds several.

    Raises:
        ValueError: if it is not a file of rows, or shorter than its header says, in one line.
    """
    with path.open("rb") as file:
        try:
            dtype, shape = _npy_header(file) if path.suffix == ".npy" else _safetensors_header(file, key)
        except (ValueError, KeyError, TypeError, EOFError) as error:
            raise ValueError(f"{path}: not a readable {path.suffix} file of floating point rows ({error})") from error
        offset, size = file.tell(), os.fstat(file.fileno()).st_size
    if len(shape) != 2 or shape[1] < 1:
        raise ValueError(f"{path}: expected rows [N, D], got shape {list(shape)}")
    needed = offset + math.prod(shape) * dtype.itemsize
    if size < needed:
        raise ValueError(f"{path}: expected {needed} bytes for shape {list(shape)}, got {size}")
    return RowsFile(path, dtype, shape[0], shape[1], offset)


def read_metadata(path: Path) -> dict[str, str]:
    """The texts in a ``.safetensors`` file."""
    with path.open("rb") as file:
        return dict(_json_header(file).get("__metadata__", {}))


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


def _npy_header(file: BinaryIO) -> tuple[torch.dtype, tuple[int, ...]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(file)
    if fortran_order:
        raise ValueError("columns lie together, not rows")
    return _NPY[dtype.str], shape


def _safetensors_header(file: BinaryIO, key: str | None) -> tuple[torch.dtype, tuple[int, ...]]:
    header = _json_header(file)
    header.pop("__metadata__", None)
    if key is None and len(header) != 1:
        raise ValueError(f"it holds {len(header)} tensors, not one")
    entry = header[key] if key is not None else next(iter(header.values()))
    file.seek(entry["data_offsets"][0], os.SEEK_CUR)
    return _SAFETENSORS[entry["dtype"]], tuple(entry["shape"])


def _json_header(file: BinaryIO) -> dict[str, Any]:
    length = int.from_bytes(file.read(8), "little")
    if length > _LONGEST_HEADER:
        raise ValueError("no header")
    header: dict[str, Any] = json.loads(file.read(length))
    return header
