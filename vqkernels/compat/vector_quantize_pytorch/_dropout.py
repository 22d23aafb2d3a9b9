"""How many layers of a residual quantizer a training step keeps."""

from __future__ import annotations

import random
from math import ceil

import torch

from vqkernels.distributed import all_reduce_sum_, world


def get_maybe_sync_seed(device: torch.device, max_size: int = 10_000) -> int:
    """A random number on which all processes agree."""
    seed = torch.randint(0, max_size, ())
    if world()[1] == 1:
        return int(seed)
    total = seed.float().to(device)
    all_reduce_sum_(total)
    return int(total)


def dropout_depth(seed: int, cutoff: int, multiple_of: int, num_quantizers: int) -> int:
    """More than ``cutoff``, rounded up to a multiple, drawn from a seed."""
    last = random.Random(seed).randrange(cutoff, num_quantizers)
    return min(ceil((last + 1) / multiple_of) * multiple_of, num_quantizers)
