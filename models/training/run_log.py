"""What a training leaves behind while it runs: metrics.jsonl, TensorBoard, a progress bar."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TextIO

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Appends to a run folder; a resumed run first loses the lines after its checkpoint."""

    def __init__(self, run_dir: Path, start: int, *, enabled: bool = True) -> None:
        kept = [line for line in read_metrics(run_dir) if line["step"] <= start]
        self.last: dict[str, float] = kept[-1] if kept else {}
        self._file: TextIO | None = None
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


def read_metrics(run_dir: Path | str) -> list[dict[str, float]]:
    """The lines of metrics.jsonl; a last line cut short by a kill is left out."""
    path = Path(run_dir) / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


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

    def describe(self, line: dict[str, float]) -> None:
        self._text = (
            f"{line['images_per_second']:.0f} images/s  loss {line['loss']:.3f}  "
            f"{line['psnr']:.1f} dB  {line['utilization']:.0%} used"
        )

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
