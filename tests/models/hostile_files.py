"""Ways to damage the files of a run: each takes the folder that the run lies in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


def write(name: str, content: bytes | str) -> Callable[[Path], object]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda here: (here / name).write_bytes(data)


def pipe(name: str) -> Callable[[Path], object]:
    return lambda here: ((here / name).unlink(missing_ok=True), os.mkfifo(here / name))


def cut(name: str, size: int) -> Callable[[Path], object]:
    return lambda here: (here / name).write_bytes((here / name).read_bytes()[:size])


def remove(name: str) -> Callable[[Path], object]:
    return lambda here: (here / name).unlink()


def array(name: str, value: np.ndarray) -> Callable[[Path], object]:
    return lambda here: np.save(here / name, value)


def renamed_checkpoints(here: Path) -> None:
    for name, other in (("step_000000", "step_first"), ("step_000001", "step_-1")):
        (here / CHECKPOINTS / name).rename(here / CHECKPOINTS / other)


def state(**changes: Any) -> Callable[[Path], object]:
    def change(here: Path) -> None:
        path = here / STEP / "state.pt"
        torch.save({**torch.load(path), **changes}, path)

    return change


def header(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """The header of a safetensors file, changed; the data stay."""

    def damage(here: Path) -> None:
        content = (here / name).read_bytes()
        size = int.from_bytes(content[:8], "little")
        told = json.loads(content[8 : 8 + size])
        change(told)
        text = json.dumps(told).encode()
        (here / name).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])

    return damage


def tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    """A change of every tensor of a header."""
    return lambda told: [change(one) for key, one in told.items() if key != "__metadata__"]


def config(run: str, **changes: Any) -> Callable[[Path], object]:
    def change(here: Path) -> None:
        path = here / run / "config.json"
        told = json.loads(path.read_text())
        path.write_text(json.dumps({**told, **changes}))

    return change


CHECKPOINTS = "run/checkpoints"
STEP = f"{CHECKPOINTS}/step_000001"
MODEL, STATE = f"{STEP}/model.safetensors", f"{STEP}/state.pt"
SHARD = "codes/train/shard_00000.safetensors"
PRIOR_MODEL = "prior/checkpoints/step_000001/model.safetensors"
DEEP = "[" * 100_000


class Code:
    """What a pickle must not run."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch ran",)


_OF_THAT_SIZE = {"F32": "I32", "I64": "F64", "I32": "F32", "U16": "F16", "I16": "BF16", "U8": "F8_E5M2", "BOOL": "U8"}
OTHER_NUMBERS = tensors(lambda one: one.update(dtype=_OF_THAT_SIZE[one["dtype"]]))
HEADERS = {
    "an offset past the end": tensors(lambda one: one.update(data_offsets=[0, 1 << 40])),
    "an offset below 0": tensors(lambda one: one.update(data_offsets=[-8, 8])),
    "offsets that overlap": tensors(lambda one: one.update(data_offsets=[0, 8])),
    "a shape of another size": tensors(lambda one: one.update(shape=[*one["shape"], 2])),
    "a shape below 0": tensors(lambda one: one.update(shape=[-1])),
    "a shape beyond 64 bits": tensors(lambda one: one.update(shape=[1 << 63, 1 << 63])),
    "a type that is none": tensors(lambda one: one.update(dtype="F23")),
    "a type of another size": tensors(lambda one: one.update(dtype="BF16")),
    "no tensors": lambda told: told.clear(),
    "a tensor of nothing": lambda told: told.update(nothing=None),
}
JSONS = {
    "null": "null",
    "list": "[1]",
    "text": '"a"',
    "deep": DEEP,
    "bytes": b"\xff\xfe\0",
    "empty": "",
    "cut": '{"a',
}
LINES = {
    "null": "null\n",
    "list": "[1]\n",
    "no step": '{"loss": 1}\n',
    "deep": f"{DEEP}\n",
    "a step of text": '{"step": "1"}\n',
    "bytes": b"\xff\xfe\n",
}
