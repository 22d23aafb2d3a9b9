"""Tensors of the state that do not change, and so need not be sent to other processes in every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, cast

import torch
from torch import nn

from vqkernels.distributed import of_the_first, world


class Unsent(nn.Module):
    """A module with a tensor that is saved, loaded and moved like a buffer, and is none.

    DistributedDataParallel sends all buffers of a model from the first process to the others before every forward.
    This one goes there once.
    """

    _unsent: str | None = None
    _sent = False

    def set_unsent(self, name: str, tensor: torch.Tensor) -> None:
        self._unsent = name
        setattr(self, name, tensor)

    def send_once(self) -> None:
        """Give all processes the tensor of the first one; each calls this, at the start of a training step."""
        # what DistributedDataParallel does when it is built, to everything else
        if self._unsent is not None and not self._sent and world()[1] > 1:
            setattr(self, self._unsent, of_the_first(getattr(self, self._unsent)))
            self._sent = True

    @contextmanager
    def as_a_buffer(self) -> Iterator[None]:
        name = self._unsent
        if name is None:
            yield
            return
        self._buffers[name] = self.__dict__.pop(name)
        try:
            yield
        finally:
            self.__dict__[name] = self._buffers.pop(name)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        with self.as_a_buffer():
            return cast(Self, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]

    def _save_to_state_dict(self, *args: Any) -> None:
        with self.as_a_buffer():
            super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args: Any) -> None:
        with self.as_a_buffer():
            super()._load_from_state_dict(*args)
