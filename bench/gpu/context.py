"""What a step of the suite works with, and where its findings go."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.device import Cuda, Device, Rehearsal
from bench.ours import backend_obstacle
from bench.run import Options
from bench.timing import summarize

_GPU_BACKENDS = ("cuda", "triton")


class Unavailable(Exception):
    """A step, or a part of one, needs something that is not there; the text says what."""


@dataclass
class Context:
    """One step's surroundings. Findings are written as they come, so that a step cut off leaves them."""

    out: Path
    part: Path  # the findings of this step so far
    seconds: float  # that the step may take
    smoke: bool = False
    findings: dict[str, Any] = field(default_factory=dict)
    start: float = field(default_factory=time.monotonic)
    _device: Device | None = None

    @property
    def device(self) -> Device:
        if self._device is None:
            self._device = Rehearsal(threads=1, settle_seconds=0.0) if self.smoke else Cuda()
        return self._device

    @property
    def left(self) -> float:
        """Seconds until the step is cut off."""
        return self.start + self.seconds - time.monotonic()

    @property
    def options(self) -> Options:
        """How cases are measured here; no case is begun in the last tenth of the time."""
        deadline = self.start + 0.9 * self.seconds
        options = Options(threads=1, rounds=3, min_seconds=0.3, seed=0, ceiling_seconds=0.02, deadline=deadline)
        return options.rehearsal() if self.smoke else options

    def record(self, name: str, finding: Any) -> None:
        self.findings[name] = finding
        partial = self.part.with_suffix(".tmp")
        partial.write_text(json.dumps(self.findings))
        partial.replace(self.part)

    def time(self, call: Any) -> dict[str, float]:
        """Median and quantiles of a call that has run before."""
        return asdict(summarize(self.device.samples(call, 0.0 if self.smoke else 0.2)))

    def require_gpu_backend(self, op: str) -> list[str]:
        """The backends of an op that launch GPU kernels here.

        Raises:
            Unavailable: if there is none: the reference is right, and no measurement of anything.
        """
        obstacles = {backend: backend_obstacle(op, backend) for backend in _GPU_BACKENDS}
        if all(obstacles.values()):
            raise Unavailable("; ".join(dict.fromkeys(obstacles.values())))
        return [backend for backend, obstacle in obstacles.items() if not obstacle]
