"""Sources whose samples are known, and sources that misbehave. Worker processes import this file: no torch here."""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np

from models.data.sample import Sample, Source


class Numbered(Source):
    """Image ``n`` is [3, 4, 3] of the value ``n``; some numbers are unreadable."""

    fingerprint = "numbered"

    def __init__(self, count: int, unreadable: frozenset[int] = frozenset(), drawn: bool = False) -> None:
        self._count, self._unreadable, self.drawn = count, unreadable, drawn

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        return f"number {index}"

    def read(self, index: int) -> Sample | None:
        if index in self._unreadable:
            return None
        return Sample(self.name(index), np.full((3, 4, 3), index, np.uint8))


class Misbehaving(Numbered):
    """From number ``first`` on, reading goes wrong as ``how`` says."""

    def __init__(self, how: str, count: int = 10) -> None:
        super().__init__(count)
        self.how = how

    def read(self, index: int) -> Sample | None:
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.how == "exits":
            os._exit(3)
        elif self.how == "raises":
            raise ZeroDivisionError("a bug in the source")
        elif self.how == "hangs":
            time.sleep(3600)
        elif self.how == "prints":
            sys.stdout.write("a library talks\n")
            os.write(1, b"and one written in C\n")
        return super().read(index)
