"""One pass over a source: on every process its own part, kept on disk so that an interrupted pass goes on.

B batch, T frames, S pixels.
"""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from models.data.folder import folder_index, path_of
from models.data.images import read_image
from models.data.loader import Batch, Loader
from models.data.sample import Sample, Source, printable
from models.data.transforms import Transform
from models.environment import device_of
from models.errors import UserError
from models.metrics.accumulator import Accumulator, Sums

_BROKEN = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Place:
    """Which process this is, and where its networks run."""

    rank: int
    world: int
    device: torch.device

    @staticmethod
    def here(device: str | None = None) -> Place:
        """Joins the processes that torchrun started; ``device`` None takes what there is, one of them each."""
        wanted = None if device is None else device_of(device)
        on_cpu = not torch.accelerator.is_available() if wanted is None else wanted.type == "cpu"
        state = PartialState(cpu=on_cpu)
        return Place(state.process_index, state.num_processes, state.device if wanted is None else wanted)

    @property
    def main(self) -> bool:
        """True on one process."""
        return self.rank == 0

    def wait(self) -> None:
        """For all processes."""
        PartialState().wait_for_everyone()


class Count(Sums):
    """What went by."""

    def __init__(self) -> None:
        super().__init__(**{name: torch.zeros((), dtype=torch.int64) for name in ("samples", "images", "tokens")})

    def update(self, samples: int, images: int, tokens: int) -> None:
        for name, number in (("samples", samples), ("images", images), ("tokens", tokens)):
            self.sums[name] += number

    def __getattr__(self, name: str) -> int:
        if name in ("samples", "images", "tokens"):
            return int(self.sums[name])
        raise AttributeError(name)

    def compute(self) -> dict[str, float]:
        return {name: int(value) for name, value in self.sums.items()}


class Kept:
    """What this process has seen so far, in a folder of its own until the scores are written."""

    def __init__(self, folder: Path, name: str, place: Place, key: str, parts: Mapping[str, Accumulator]) -> None:
        """``key`` says what is seen by whom: what another one has left behind is not gone on with."""
        self._folder, self._path = folder, folder / f"{name}_{place.rank}.pt"
        self._key, self._parts = f"{key} {place.world}", parts

    def save(self, step: int) -> None:
        """Whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".tmp")
        states = {name: part.state() for name, part in self._parts.items()}
        torch.save({"key": self._key, "step": step, "states": states}, partial)
        os.replace(partial, self._path)

    def restore(self) -> int:
        """Take back what was saved; the step that it was saved after, 0 if there is nothing to go on with."""
        try:
            saved = torch.load(self._path, map_location="cpu", weights_only=True)
            if saved["key"] != self._key:
                return 0
            states, step = saved["states"], int(saved["step"])
            for name, part in self._parts.items():
                part.restore(states[name])
        except FileNotFoundError:
            return 0
        except _BROKEN as error:
            raise UserError(f"{self._path}: cannot go on with it ({type(error).__name__}); delete it") from error
        return step

    def remove(self) -> None:
        """Once it is no longer needed."""
        shutil.rmtree(self._folder, ignore_errors=True)


def run_pass(
    source: Source,
    transform: Transform,
    look: Callable[[Batch], None],
    kept: Kept,
    place: Place,
    *,
    batch_size: int,
    workers: int,
    save_every: int,
) -> None:
    """Show this process's part of a source to ``look``, batch by batch, from where it was left."""
    start = kept.restore()
    steps = -(-len(source) // (batch_size * place.world))
    loader = Loader(
        source,
        transform,
        batch_size=batch_size,
        rank=place.rank,
        world=place.world,
        start_step=start,
        workers=workers,
        shuffle=False,
        device=place.device,
    )
    with loader, torch.no_grad():
        for batch in loader if start < steps else ():
            look(batch)
            step = (
                int(batch["index"][-1]) // (batch_size * place.world) + 1
            )  # a batch of unreadable images is left out
            if step - start >= save_every:
                kept.save(step)
                start = step
    kept.save(steps)


class Limited(Source):
    """The first samples of a source."""

    def __init__(self, source: Source, limit: int) -> None:
        self._source, self._limit = source, min(limit, len(source))
        self.labels, self.map_labels = source.labels, source.map_labels

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        return f"{self._source.fingerprint}[:{self._limit}]"

    def __len__(self) -> int:
        return self._limit

    def name(self, index: int) -> str:
        return self._source.name(index)

    def read(self, index: int) -> Sample | None:
        return self._source.read(index)


class AllImages(Source):
    """Every image below a folder, no side of a split."""

    def __init__(self, root: Path) -> None:
        self._root, self._index = root, folder_index(root)

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        return self._index.fingerprint

    def __len__(self) -> int:
        return len(self._index["folder_of"])

    def name(self, index: int) -> str:
        return printable(path_of(self._index, index))

    def read(self, index: int) -> Sample | None:
        image = read_image(os.path.join(os.fsencode(self._root), path_of(self._index, index)))
        return None if image is None else Sample(self.name(index), image)


def crop_of(source: Source, transform: Transform, index: int) -> np.ndarray:  # [3, S, S] or [T, 3, S, S] uint8
    """What the pass saw of one sample."""
    sample = source.read(index)
    arrays = None if sample is None else transform(sample, np.random.default_rng(0))
    if arrays is None:
        raise UserError(f"data: {source.name(index)} was readable and no longer is")
    return arrays["image"]
