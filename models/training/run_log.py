"""What a training leaves behind while it runs: metrics.jsonl, TensorBoard, a tracker by name, a progress bar."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from models.errors import UserError
from models.training.config import RunConfig


class RunLog:
    """Appends to a run folder; a resumed run first loses the lines after its checkpoint."""

    def __init__(self, run_dir: Path, start: int, config: RunConfig, *, enabled: bool = True) -> None:
        kept = [line for line in read_metrics(run_dir) if line["step"] <= start]
        self.last: dict[str, float] = kept[-1] if kept else {}
        self._file: TextIO | None = None
        self._tracker = _tracker(config, run_dir) if enabled else None
        if enabled:
            path = run_dir / "metrics.jsonl"
            partial = path.with_name(".metrics.jsonl.partial")
            partial.write_text("".join(_encode(line) for line in kept))
            partial.rename(path)
            self._file = open(path, "a")  # noqa: SIM115, closed in __exit__
            self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1)

    def write(self, line: dict[str, float]) -> None:
        self.last = line
        if self._file is None:
            return
        self._file.write(_encode(line))
        self._file.flush()
        for name, value in line.items():
            self._board.add_scalar(name, value, line["step"])
        if self._tracker is not None:
            self._tracker.log(line, step=int(line["step"]))

    def image(self, name: str, image: np.ndarray, step: int) -> None:  # [H, W, 3] uint8
        if self._file is not None:
            self._board.add_image(name, image, step, dataformats="HWC")

    def sync(self) -> None:
        """Bring everything written so far to the disk; a checkpoint comes after."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._board.flush()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._board.close()
        if self._tracker is not None:
            self._tracker.finish()


def read_metrics(run_dir: Path | str) -> list[dict[str, float]]:
    """The lines of metrics.jsonl; a last line cut short by a kill is left out."""
    path = Path(run_dir) / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_decode(path, number, line) for number, line in enumerate(lines, 1)]


def _decode(path: Path, number: int, text: bytes) -> dict[str, float]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: line {number} is not JSON") from error
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        raise UserError(f"{path}: line {number}: expected an object with a step")
    return line


def _tracker(config: RunConfig, run_dir: Path) -> Any:
    """wandb or trackio, which share these three calls; None if neither is asked for."""
    if config.track == "none":
        return None
    try:
        tracker = importlib.import_module(config.track)
    except ImportError as error:
        raise UserError(f"track: package {config.track} is not installed; pip install {config.track}") from error
    tracker.init(project="vqkernels", name=run_dir.name, config=dataclasses.asdict(config))
    return tracker


def _encode(line: dict[str, float]) -> str:
    return json.dumps(line) + "\n"


class Display:
    """A live bar on a terminal, a line now and then elsewhere, nothing when off."""

    def __init__(self, name: str, start: int, steps: int, *, enabled: bool) -> None:
        self._console = Console(stderr=True)
        self._plain = enabled and not self._console.is_terminal
        self._name, self._steps = name, steps
        self._text = ""
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            disable=not enabled or self._plain,
        )
        self._task = self._progress.add_task(name, total=steps, completed=start, text="")

    def describe(self, text: str) -> None:
        self._text = text

    def advance(self, step: int) -> None:
        self._progress.update(self._task, completed=step, text=self._text)
        tenth = step * 10 // self._steps > (step - 1) * 10 // self._steps
        if self._plain and self._text and tenth:
            print(f"{self._name} {step}/{self._steps}  {self._text}", file=self._console.file, flush=True)

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
