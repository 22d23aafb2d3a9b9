"""Codes and latents of images: written by the extraction of a tokenizer, read by the training of a prior.

    DIR/manifest.json    what they are: tokenizer, source, shape, number of codes, samples, samples a shard
    DIR/shard_00000.safetensors ...    codes or latents [n, V, ...], label [n], index [n]

V views (crops) of each sample. Codes are stored in the smallest integers that hold them. A shard covers a fixed range
of the source; samples that could not be read are not in it. Shards are written whole or not at all, by any number of
processes, each its own; what is missing after an interruption is written the next time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.numpy

from models.data.sample import Sample, Source, SplitName, split_of
from models.errors import UserError, check_file, read_object

Kind = Literal["codes", "latents"]
_FORMAT = 1
_OPEN_SHARDS = 128
_STORED = {"uint8": "U8", "uint16": "U16", "int32": "I32", "float16": "F16", "float32": "F32"}
_DTYPES = {"codes": ("uint8", "uint16", "int32"), "latents": ("float16", "float32")}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of codes or latents holds."""

    kind: Kind
    tokenizer: str  # fingerprint of what made them
    source: str  # fingerprint of what they were made of
    shape: tuple[int, ...]  # of one view: [h, w], [h, w, G], [C, h, w], ...
    count: int  # samples of the source
    views: int = 1
    num_codes: int | None = None  # codes are below it; None: latents
    dtype: str = ""  # codes: the smallest that holds them
    shard_size: int = 1024  # samples of the source a shard covers
    labels: tuple[str, ...] = ()  # names of the classes, () without labels
    settings: Mapping[str, Any] = field(default_factory=dict)  # JSON: transform, network, whatever else made them
    format: int = _FORMAT

    def __post_init__(self) -> None:
        if self.kind not in _DTYPES:
            raise ValueError(f"kind: expected codes or latents, got {self.kind!r}")
        if (self.num_codes is None) != (self.kind == "latents"):
            raise ValueError(f"num_codes: expected a number for codes and None for latents, got {self.num_codes}")
        if not self.dtype:
            object.__setattr__(self, "dtype", _smallest(self.num_codes))
        if self.dtype not in _DTYPES[self.kind]:
            raise ValueError(f"dtype: expected one of {_DTYPES[self.kind]} for {self.kind}, got {self.dtype!r}")
        if min(self.count, self.views, self.shard_size, *self.shape) < 1:
            raise ValueError(
                "count, views, shard_size, shape: expected 1 or more, "
                f"got {self.count}, {self.views}, {self.shard_size}, {self.shape}"
            )

    @property
    def shards(self) -> int:
        return -(-self.count // self.shard_size)

    def span(self, shard: int) -> range:
        """The samples of the source that a shard covers."""
        return range(shard * self.shard_size, min(self.count, (shard + 1) * self.shard_size))


def _smallest(num_codes: int | None) -> str:
    if num_codes is None:
        return "float32"
    return "uint8" if num_codes <= 1 << 8 else "uint16" if num_codes <= 1 << 16 else "int32"


class CodeWriter:
    """Fills a folder, from the beginning or where it was left.

    Raises:
        UserError: if the folder holds something that was made in another way.
    """

    def __init__(self, folder: Path | str, manifest: Manifest) -> None:
        self.folder, self.manifest = Path(folder), manifest
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "manifest.json"
        text = json.dumps(asdict(manifest), indent=2) + "\n"
        if not path.exists():
            _write(path, text.encode())
        there, mine = json.loads(json.dumps(asdict(read_manifest(self.folder)))), json.loads(text)
        differing = [key for key in mine if there[key] != mine[key]]
        if differing:
            key = differing[0]
            raise UserError(
                f"{path}: what is here was made with another {', '.join(differing)} "
                f"({there[key]!r}, now {mine[key]!r}); choose another folder"
            )

    def missing(self, rank: int = 0, world: int = 1) -> list[int]:
        """Numbers of the shards that process ``rank`` of ``world`` has still to write."""
        return [
            number for number in range(rank, self.manifest.shards, world) if not _shard(self.folder, number).exists()
        ]

    def write(self, shard: int, values: np.ndarray, index: np.ndarray, label: np.ndarray | None = None) -> None:
        """Write a shard, whole or not at all.

        Args:
            shard: its number.
            values: codes or latents, ``[n, V, ...]``.
            index: which samples of the source they are of, ``[n]``, ascending, within ``manifest.span(shard)``.
            label: their classes, ``[n]``; needed where the manifest has labels.
        """
        manifest = self.manifest
        span, expected = manifest.span(shard), (len(index), manifest.views, *manifest.shape)
        if values.shape != expected:
            raise ValueError(f"values: expected {list(expected)}, got {list(values.shape)}")
        if len(index) and not (np.all(np.diff(index) > 0) and index[0] >= span.start and index[-1] < span.stop):
            raise ValueError(f"index: expected numbers of {span.start} to {span.stop - 1}, ascending, got {index}")
        if (label is None) == bool(manifest.labels) or (label is not None and label.shape != index.shape):
            raise ValueError(f"label: expected {'[n]' if manifest.labels else 'None'}, got {label}")
        if (
            manifest.num_codes is not None
            and values.size
            and not 0 <= values.min() <= values.max() < manifest.num_codes
        ):
            raise ValueError(
                f"values: expected codes below {manifest.num_codes}, got {values.min()} to {values.max()}"
            )
        arrays = {
            manifest.kind: np.ascontiguousarray(values, dtype=manifest.dtype),
            "index": np.ascontiguousarray(index, dtype=np.int64),
        }
        if label is not None:
            arrays["label"] = np.ascontiguousarray(label, dtype=np.int64)
        _write(_shard(self.folder, shard), safetensors.numpy.save(arrays))


class CodeSource(Source):
    """The samples of one side: ``DIR/train`` and ``DIR/val`` where there are both, else every tenth is held out."""

    def __init__(self, folder: Path | str, split: SplitName, kind: Kind) -> None:
        self._folder, self._split, self._kind = folder, split, kind
        root = Path(folder)
        presplit = all((root / side / "manifest.json").exists() for side in ("train", "val"))
        self.folder = root / split if presplit else root
        self.manifest = read_manifest(self.folder)
        if self.manifest.kind != kind:
            raise UserError(f"data: expected {kind} in {self.folder}, got {self.manifest.kind}")
        self._types = {kind: _STORED[self.manifest.dtype], "index": "I64"}
        if self.manifest.labels:
            self._types["label"] = "I64"
        numbers = range(self.manifest.shards)
        absent = [number for number in numbers if not _shard(self.folder, number).exists()]
        if absent:
            raise UserError(
                f"data: {self.folder} is not finished, {len(absent)} of {len(numbers)} shards are missing; "
                "the command that made it goes on where it stopped"
            )
        self._shards: OrderedDict[int, Any] = OrderedDict()
        lengths = [self._open(number).get_slice("index").get_shape()[0] for number in numbers]
        self._ends = np.cumsum(lengths, dtype=np.int64)
        count = int(self._ends[-1])
        self._positions: Sequence[int] = range(count) if presplit else split_of(count, split)
        if not self._positions:
            raise UserError(f"data: expected at least 2 samples in {self.folder} to split, got {count}")
        self.labels = self.manifest.labels

    def __reduce__(self) -> tuple[type[CodeSource], tuple[Path | str, SplitName, Kind]]:
        return CodeSource, (self._folder, self._split, self._kind)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self.manifest), sort_keys=True).encode()).hexdigest()[:32]

    def check_tokenizer(self, fingerprint: str) -> None:
        """Refuse codes that another tokenizer made: they mean something else."""
        made_by = self.manifest.tokenizer
        if made_by != fingerprint:
            raise UserError(
                f"data: the {self._kind} in {self.folder} were made by another tokenizer "
                f"(fingerprint {made_by}, expected {fingerprint}); extract them again"
            )

    def __len__(self) -> int:
        return len(self._positions)

    def name(self, index: int) -> str:
        shard, row = self._place(index)
        return f"{_shard(self.folder, shard).name} row {row}"

    def read(self, index: int) -> Sample:
        number, row = self._place(index)
        shard = self._open(number)
        values = shard.get_slice(self._kind)[row : row + 1][0]  # [V, ...]
        label = int(shard.get_slice("label")[row : row + 1][0]) if self.labels else None
        return Sample(self.name(index), values, label)

    def source_index(self, index: int) -> int:
        """Which sample of the source a sample was made of."""
        number, row = self._place(index)
        return int(self._open(number).get_slice("index")[row : row + 1][0])

    def _place(self, index: int) -> tuple[int, int]:
        position = self._positions[index]
        shard = int(np.searchsorted(self._ends, position, side="right"))
        return shard, position - (int(self._ends[shard - 1]) if shard else 0)

    def _open(self, number: int) -> Any:
        if number not in self._shards:
            path = _shard(self.folder, number)
            check_file(path)
            try:
                shard = safetensors.safe_open(path, framework="numpy")
                parts = {name: shard.get_slice(name) for name in self._types}
            except (safetensors.SafetensorError, OSError) as error:
                reason = str(error).partition("\n")[0]
                raise UserError(f"{path}: truncated or not a shard of {self._kind} ({reason}); remove it") from error
            shape, expected = parts[self._kind].get_shape(), [self.manifest.views, *self.manifest.shape]
            if shape[1:] != expected:
                raise UserError(f"{path}: expected {self._kind} of shape {expected}, got {shape[1:]}")
            for name, part in parts.items():
                wanted, got = shape if name == self._kind else shape[:1], part.get_shape()
                if part.get_dtype() != self._types[name] or got != wanted:
                    told = f"{name} as {self._types[name]} {wanted}, got {part.get_dtype()} {got}"
                    raise UserError(f"{path}: expected {told}")
            self._shards[number] = shard
            if len(self._shards) > _OPEN_SHARDS:
                self._shards.popitem(last=False)
        self._shards.move_to_end(number)
        return self._shards[number]


def read_manifest(folder: Path | str) -> Manifest:
    """What a folder holds."""
    path = Path(folder) / "manifest.json"
    try:
        values = read_object(path, "a manifest of codes or latents")
        if values["format"] != _FORMAT:
            raise UserError(f"{path}: expected format {_FORMAT}, got {values['format']!r}")
        values |= {"shape": tuple(values["shape"]), "labels": tuple(values["labels"])}
        return Manifest(**values)
    except FileNotFoundError as error:
        raise UserError(
            f"data: expected a folder of codes or latents, got {str(folder)!r} without manifest.json"
        ) from error
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(f"{path}: not a manifest of codes or latents ({error})") from error


def _shard(folder: Path, number: int) -> Path:
    return folder / f"shard_{number:05d}.safetensors"


def _write(path: Path, content: bytes) -> None:
    """Under another name, brought to the disk, then renamed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path}: not written ({error.strerror})") from error
