"""Training forwards that are computed once more in a backward: activation checkpointing.

Such a forward has to return what it returned, and must not move a codebook a second time. So it sees the codes of its
first time, which are kept for it where somebody may ask for them again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import torch

Result = TypeVar("Result")

_MOST = 16  # forwards of a module that may wait for their recomputation
_SAMPLE = 1024  # entries by which the input of a forward is known again


def recomputing() -> bool:
    """Whether this forward is part of a backward; never in a graph, which torch recomputes without writing to it."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _may_come_again() -> bool:
    # a reentrant checkpoint runs without gradients, any other one catches what is saved for the backward
    if torch.compiler.is_compiling():
        return False
    catches = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    return catches or not torch.is_grad_enabled()


@dataclass
class _Forward:
    key: tuple[torch.Size, torch.dtype, torch.device]
    sample: torch.Tensor
    state: list[torch.Tensor]
    seen_in: set[int] = field(default_factory=set)  # backwards that computed it again


class Past:
    """What training forwards of one module read of the state that they then moved."""

    def __init__(self) -> None:
        self._kept: deque[_Forward] = deque(maxlen=_MOST)
        self._lost = False  # whether one had to go that nobody had asked for

    def take(self, step: Callable[..., Result], x: torch.Tensor, *args: Any, state: Sequence[torch.Tensor]) -> Result:
        """``step(x, *args, moves=True)``, or of a forward that has been before the same with ``moves=False``.

        ``state`` is what the step reads of what it moves.
        """
        if recomputing():
            with self.restored(x, state):
                return step(x, *args, moves=False)
        self.keep(x, state)
        return step(x, *args, moves=True)

    def keep(self, x: torch.Tensor, state: Sequence[torch.Tensor]) -> None:
        """Remember ``state`` as this forward of ``x`` sees it, if it may be computed again."""
        if not state or not _may_come_again():
            return
        waiting = [forward for forward in self._kept if not forward.seen_in]
        self._lost = len(waiting) == _MOST
        self._kept = deque(waiting, maxlen=_MOST)
        self._kept.append(_Forward(_key(x), _sample(x), [tensor.detach().clone() for tensor in state]))

    @contextmanager
    def restored(self, x: torch.Tensor, state: Sequence[torch.Tensor]) -> Iterator[None]:
        """``state`` is what it was when ``x`` came for the first time."""
        before = self._find(x).state if state else []
        now = [tensor.detach().clone() for tensor in state]
        try:
            _write(state, before)
            yield
        finally:
            # a recomputation may end early, by an exception
            _write(state, now)

    def _find(self, x: torch.Tensor) -> _Forward:
        task = torch._C._current_graph_task_id()
        alike = [forward for forward in reversed(self._kept) if forward.key == _key(x)]
        if len(alike) > 1 or self._lost:
            sample = _sample(x)
            alike = [forward for forward in alike if torch.equal(forward.sample, sample)]
        if not alike:
            raise RuntimeError(
                f"checkpoint: expected the input of one of the last {_MOST} forwards once more, got another"
            )
        # the same batch several times: backwards go from the last one to the first
        found = next((forward for forward in alike if task not in forward.seen_in), alike[0])
        found.seen_in.add(task)
        return found

    def __deepcopy__(self, memo: object) -> Self:
        return type(self)()

    def __reduce__(self) -> tuple[type[Past], tuple[()]]:
        return type(self), ()


def _key(x: torch.Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return x.shape, x.dtype, x.device


def _sample(x: torch.Tensor) -> torch.Tensor:
    flat = x.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // _SAMPLE)].nan_to_num()


@torch.no_grad()
def _write(state: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    for tensor, value in zip(state, values, strict=True):
        tensor.copy_(value)
