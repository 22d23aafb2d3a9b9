"""Which vectors move state: those that are finite and not longer than :data:`LONGEST`.

A squared distance of two such vectors, and a sum of as many as memory holds, are float32 numbers. A lookup is exact
for every finite vector; what it finds for longer ones takes no part in losses, statistics and updates.
"""

from __future__ import annotations

import torch

# squared distances are at most 2^126
LONGEST = 2.0**62


def usable_rows(x: torch.Tensor) -> torch.Tensor:  # [..., D] -> [...] bool
    # one pass; false for NaN, and where the square overflows
    dtype = torch.promote_types(x.dtype, torch.float32)
    usable: torch.Tensor = torch.linalg.vector_norm(x.detach(), dim=-1, dtype=dtype) <= LONGEST
    return usable
