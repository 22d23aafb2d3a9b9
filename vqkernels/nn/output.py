"""What quantizers return."""

from __future__ import annotations

from typing import NamedTuple

import torch


class QuantizerOutput(NamedTuple):
    """Result of :meth:`VectorQuantizer.forward`."""

    quantized: torch.Tensor  # like x
    indices: torch.Tensor  # [...] or [..., G] int64
    loss: torch.Tensor  # [] float32
    # the unweighted terms: "commitment", "codebook" if codes are trained, and those of the regularizers
    losses: dict[str, torch.Tensor]
