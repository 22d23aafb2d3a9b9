"""Where a benchmark runs: how inputs get there, how calls are timed, what the machine is."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from bench.case import Call
from bench.ceiling import Ceiling, cpu_ceiling, cuda_ceiling

# bytes: many times the second level cache; to write them keeps a GPU of 4 TB/s busy for a quarter of a millisecond,
# in which the host enqueues the nine kernels of a lookup
_FLUSH = 1 << 30
_BATCH = 10  # calls enqueued between two looks at the clock
_MOST = 100  # calls that settle a median; of a short one many more would fit, each with a flush
_STATE = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "temperature.gpu",
    "power.draw",
    "clocks_throttle_reasons.active",
)


class Device(Protocol):
    """What the harness asks of a device."""

    kind: str  # which contestants and sizes: one of ``DEVICES``

    def place(self, problem: Any) -> Any:
        """The problem with its tensors in the device's memory."""

    def samples(self, call: Call, seconds: float) -> list[float]:
        """Seconds of each of the calls made in at least this time; at least one."""

    def settle(self) -> None:
        """Wait until what ran before has no effect on what runs next."""

    def ceiling(self, seconds: float) -> Ceiling:
        """What the device can do at most, at this moment."""

    def peak_bytes(self, make: Callable[[], Call]) -> int | None:
        """Device memory that preparing and calling takes at its peak; None where it needs a process of its own."""

    def state(self) -> dict[str, str]:
        """Facts about the device that change from run to run."""


class Cpu:
    """The processor, with a fixed number of threads for everyone."""

    kind = "cpu"

    def __init__(self, threads: int, settle_seconds: float = 0.05) -> None:
        self.threads, self.settle_seconds = threads, settle_seconds

    def place(self, problem: Any) -> Any:
        return problem

    def samples(self, call: Call, seconds: float) -> list[float]:
        samples = [_host_seconds(call)]
        while sum(samples) < seconds:
            samples.append(_host_seconds(call))
        return samples

    def settle(self) -> None:
        # the thread pool of the one before spins on for milliseconds
        time.sleep(self.settle_seconds)

    def ceiling(self, seconds: float) -> Ceiling:
        return cpu_ceiling(self.threads, seconds)

    def peak_bytes(self, make: Callable[[], Call]) -> int | None:
        return None

    def state(self) -> dict[str, str]:
        return {}


class Cuda:
    """The current CUDA device, timed by events; the second level cache is flushed before every call."""

    kind = "cuda"

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise ValueError("device: expected a CUDA device, got a machine without one")
        # peers in float32 are float32: whoever rounds its inputs says so in its name
        torch.backends.cuda.matmul.allow_tf32 = False
        self._flush = torch.empty(_FLUSH, dtype=torch.uint8, device="cuda")

    def place(self, problem: Any) -> Any:
        return moved(problem, torch.device("cuda"))

    def samples(self, call: Call, seconds: float) -> list[float]:
        samples = self._batch(call, 1)
        while sum(samples) < seconds and len(samples) < _MOST:
            # the first call tells how many fit into what is left
            count = 1 + int((seconds - sum(samples)) / max(samples[0], 1e-6))
            samples += self._batch(call, min(_BATCH, count))
        return samples

    def _batch(self, call: Call, count: int) -> list[float]:
        events = [(_event(), _event()) for _ in range(count)]
        for start, end in events:
            # the flush also keeps the device busy while the host enqueues the call: launch gaps stay out of the
            # clock, as they do behind the layers of a model; the suite's step "launches" tells how long they are
            self._flush.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return [1e-3 * start.elapsed_time(end) for start, end in events]

    def settle(self) -> None:
        torch.cuda.synchronize()

    def ceiling(self, seconds: float) -> Ceiling:
        return cuda_ceiling(self.samples, seconds)

    def peak_bytes(self, make: Callable[[], Call]) -> int | None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        make()()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def state(self) -> dict[str, str]:
        query = f"--query-gpu={','.join(_STATE)}"
        command = ["nvidia-smi", query, "--format=csv,noheader", "-i", str(torch.cuda.current_device())]
        told = ""
        if shutil.which("nvidia-smi"):
            told = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        values = told.split(", ")
        # without the tool, or with one that does not know a field, the name is all there is
        facts = dict(zip(_STATE, values, strict=True)) if len(values) == len(_STATE) else {"nvidia-smi": told}
        return {**facts, "name": torch.cuda.get_device_name()}


class Rehearsal(Cpu):
    """The plan of a GPU, run on the processor: same contestants and steps, figures that mean nothing."""

    kind = "cuda"

    def state(self) -> dict[str, str]:
        return {"rehearsal": "on the processor"}


def device_for(kind: str, threads: int, settle_seconds: float) -> Device:
    """The device of this kind.

    Raises:
        ValueError: if there is none.
    """
    return Cpu(threads, settle_seconds) if kind == "cpu" else Cuda()


def _host_seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)


def moved(value: Any, device: torch.device) -> Any:
    """A problem, tensors of a tuple however deep, on a device; what is no tensor stays as it is."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if not isinstance(value, tuple):
        return value
    items = (moved(item, device) for item in value)
    return value._make(items) if hasattr(value, "_make") else tuple(items)
