"""The progress of a run on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType


class Progress:
    """A callback that keeps a bar; where no line can be rewritten, it writes one each time."""

    def __init__(self, rows: int, max_iter: int, *, shown: bool, done: int = 0) -> None:
        self.rows, self.max_iter, self.shown = rows, max_iter, shown
        self.done, self.start = done, time.perf_counter()
        self.rewrite = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __call__(self, iteration: int, inertia: float, moved: int, empty: int) -> None:
        if not self.shown:
            return
        seconds = max(time.perf_counter() - self.start, 1e-9) / (iteration + 1 - self.done)  # per pass
        bar = "#" * (20 * (iteration + 1) // (self.max_iter + 1))
        line = (
            f"k-means [{bar:<20}] {iteration}/{self.max_iter}  inertia {inertia:.6g}  moved {moved}  "
            f"empty {empty}  {self.rows / seconds:.3g} rows/s  ETA {seconds * (self.max_iter - iteration):.0f} s"
        )
        sys.stderr.write(f"\r{line:<118}" if self.rewrite else f"{line}\n")
        sys.stderr.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.shown and self.rewrite:
            sys.stderr.write("\n")
