"""What a metric has seen so far: sums and tables that batches, processes and interrupted runs add up to.

State is kept as int64 and float64 on the CPU. Counts and tables do not depend on how the images were divided among
batches and processes; float64 sums do in the last bits, because they are added in another order. B batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed

State = dict[str, torch.Tensor]


class Accumulator(ABC):
    """One metric, or several that need the same numbers."""

    @abstractmethod
    def state(self) -> State:
        """Everything seen so far; :meth:`restore` takes it back."""

    @abstractmethod
    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a state."""

    @abstractmethod
    def add(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take in what another process has seen."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The scores by name."""

    def merge_across_processes(self) -> None:
        """Every process ends with what all have seen; to be called once, by all of them, after the last update."""
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            states: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(states, self.state())
            # in the order of ranks, so that all processes get the same bits
            self.restore(states[0])
            for state in states[1:]:
                self.add(state)


class Sums(Accumulator):
    """State that is added elementwise."""

    def __init__(self, **zeros: torch.Tensor) -> None:
        self.sums = zeros

    def state(self) -> State:
        return {name: value.clone() for name, value in self.sums.items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        _check_state(type(self).__name__, self.sums, state)
        self.sums = {name: state[name].clone() for name in self.sums}

    def add(self, state: Mapping[str, torch.Tensor]) -> None:
        _check_state(type(self).__name__, self.sums, state)
        for name, value in self.sums.items():
            value += state[name]


class Rows(Accumulator):
    """A table with a row for every image, sorted by the number of the image when it is read."""

    def __init__(self, *columns: str) -> None:
        self._rows: dict[str, list[torch.Tensor]] = {name: [] for name in ("index", *columns)}

    def append(self, index: torch.Tensor, **columns: torch.Tensor) -> None:  # [B], each [B] or [B, ...]
        """Rows of a batch; ``index`` numbers the images of the whole set."""
        for name, values in {"index": index, **columns}.items():
            self._rows[name].append(values.detach().cpu())

    def column(self, name: str) -> torch.Tensor:  # [N] or [N, ...]
        """Values in the order of the images."""
        parts = self._rows[name]
        if not parts:
            return torch.empty(0)
        order = torch.cat(self._rows["index"]).argsort(stable=True)
        return torch.cat(parts)[order]

    def mean(self, name: str) -> float:
        """Correctly rounded, so that no order of the images changes it."""
        values = self.column(name).double().tolist()
        return math.fsum(values) / len(values) if values else math.nan

    def compute(self) -> dict[str, float]:
        """A table alone has no scores."""
        return {}

    def __len__(self) -> int:
        return sum(len(part) for part in self._rows["index"])

    def state(self) -> State:
        return {name: torch.cat(parts) for name, parts in self._rows.items() if parts}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self._rows = {name: [] for name in self._rows}
        self.add(state)

    def add(self, state: Mapping[str, torch.Tensor]) -> None:
        if state:  # an empty table has none
            _check_state(type(self).__name__, self._rows, state)
            for name, parts in self._rows.items():
                parts.append(state[name])


class ImageMeans(Rows):
    """Scores that every image has by itself; the result is their mean."""

    def update(self, index: torch.Tensor, **scores: torch.Tensor) -> None:  # [B], each [B]
        self.append(index, **{name: value.double() for name, value in scores.items()})

    def compute(self) -> dict[str, float]:
        return {name: self.mean(name) for name in self._rows if name != "index"}


def _check_state(name: str, wanted: Mapping[str, object], state: Mapping[str, torch.Tensor]) -> None:
    if set(state) != set(wanted):
        raise ValueError(f"state: expected {sorted(wanted)} for {name}, got {sorted(state)}")
