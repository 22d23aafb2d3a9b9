"""Seconds spent in a stretch of code, or in one module forward and backward."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Stopwatch:
    """Adds up stretches until it is read; on CUDA by events, so that measuring does not wait."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._start: Any = None
        self._stretches: list[tuple[Any, Any]] = []

    def start(self, *_: object) -> None:
        self._start = self._mark()

    def stop(self, *_: object) -> None:
        self._stretches.append((self._start, self._mark()))

    def take(self) -> float:
        """Seconds since the last call."""
        stretches, self._stretches = self._stretches, []
        return sum(self._seconds(start, end) for start, end in stretches)

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Measure every forward and backward pass of ``module``."""
        hooks = (
            module.register_forward_pre_hook(self.start),
            module.register_forward_hook(self.stop),
            module.register_full_backward_pre_hook(self.start),
            module.register_full_backward_hook(self.stop),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, start: Any, end: Any) -> float:
        if not self._cuda:
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000
