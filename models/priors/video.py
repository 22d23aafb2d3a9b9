"""Video prior: past frames to the next one, code after code, over the frames of a window.

B batch, T frames of a window (the next one last), h w grid, L = Thw, S scored positions, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from models.config_json import Hidden
from models.networks.code_shape import CodeShape
from models.priors.autoregressive import AutoregressiveConfig, AutoregressivePrior


@dataclass(frozen=True, kw_only=True)
class VideoConfig(AutoregressiveConfig):
    """GPT over the codes of a window of frames; the window itself is the data's (eight and the next, SGC-VQGAN)."""

    kind: Hidden[Literal["video"]] = "video"
    scored: Literal["next", "all"] = "next"  # the loss is about the last frame, or about every frame of the window


class VideoPrior(AutoregressivePrior):
    """Trained with ``scored="all"`` it also knows what frames come first; with "next", only what follows T - 1."""

    config: VideoConfig

    def __init__(self, config: VideoConfig, codes: CodeShape) -> None:
        super().__init__(config, codes)
        if codes.frames < 2:
            raise ValueError(f"frames: expected at least 2, context and next, got {codes.frames}")

    def _scored(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.config.scored == "all":
            return hidden, targets
        return hidden[:, -self.codes.cells :], targets[:, -self.codes.cells :]
