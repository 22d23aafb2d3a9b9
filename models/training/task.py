"""What a stage trains and by which losses; everything else about training is the engine's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from models.data.source import Source
from models.training.config import StageConfig

Batch = Mapping[str, torch.Tensor]
Transform = Callable[..., Any]


class Loss(NamedTuple):
    """What one optimizer minimises in one step."""

    total: torch.Tensor  # [] with gradient
    terms: dict[str, torch.Tensor]  # [] each, for the log


class Look(NamedTuple):
    """A look at held-out samples."""

    values: dict[str, float]
    picture: np.ndarray | None  # [H, W, 3] uint8


class Task(Protocol):
    """Modules, their losses, their data.

    ``players`` are what takes turns in a step, each with an optimizer of its own: ``"model"`` first, which is what
    checkpoints keep as weights, then for example ``"discriminator"``. Before the first step the engine replaces them
    by what :meth:`loss` must call: the same modules, wrapped for several processes.
    """

    stage: StageConfig
    model: nn.Module
    players: dict[str, nn.Module]
    timed: nn.Module | None  # part of the model whose share of the time is logged
    unit: str  # what a sample is, in the plural
    tokens: int  # of a sample

    def data(self, split: str) -> tuple[Source, Transform]:
        """Samples of ``"train"`` or ``"val"`` and how they become tensors."""
        ...

    def loss(self, player: str, batch: Batch, part: int, step: int) -> Loss | None:
        """Loss of one player on part ``part`` of a batch in step ``step`` of the stage; None lets it sit out."""
        ...

    def look(self, batch: Batch) -> Look:
        """Values and a picture of held-out samples; the model is in evaluation mode."""
        ...

    def statistics(self) -> dict[str, float]:
        """What is logged beside losses."""
        ...

    def headline(self, line: Mapping[str, float]) -> str:
        """A log line in a few words, for the progress bar."""
        ...
