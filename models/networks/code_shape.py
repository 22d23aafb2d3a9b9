"""What a network of codes has to know of a tokenizer: how many codes there are, and how they are laid out."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CodeShape:
    """Layout of the codes of one sample, in raster order, frame after frame."""

    num_codes: int  # codes in each group; 0 where a position holds a vector, not an index
    grid: tuple[int, int]  # rows and columns of a frame; (1, T) for a sequence of T concepts
    groups: int = 1  # indices per position, of groups or of residual levels
    frames: int = 1  # of a video window, context and next frame
    code_dim: int = 0  # width of the vector of a position, all groups together; 0 where only indices are known
    num_classes: int = 0  # classes of the samples; 0 is unconditional

    def __post_init__(self) -> None:
        for name, least in (("num_codes", 0), ("groups", 1), ("frames", 1), ("code_dim", 0), ("num_classes", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise ValueError(f"grid: expected rows and columns of at least 1, got {self.grid}")
        if not self.num_codes and not self.code_dim:
            raise ValueError("num_codes: expected codes, or vectors by code_dim, got 0 of both")
        if self.code_dim % self.groups:
            raise ValueError(f"code_dim: expected a multiple of the {self.groups} groups, got {self.code_dim}")

    @property
    def cells(self) -> int:
        """Positions of a frame."""
        return math.prod(self.grid)

    @property
    def length(self) -> int:
        """Positions of a sample, all frames together."""
        return self.frames * self.cells

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the indices of one sample: [h, w], with frames [T, h, w], with groups [..., G]."""
        frames = (self.frames,) if self.frames > 1 else ()
        groups = (self.groups,) if self.groups > 1 else ()
        return (*frames, *self.grid, *groups)
