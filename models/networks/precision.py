"""What half precision would spoil."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def float32(device: torch.device) -> AbstractContextManager[None]:
    """No autocast inside: what is computed from float32 tensors stays float32."""
    if not torch.amp.is_autocast_available(device.type):  # the meta device, for one
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Half precision as float32, anything wider as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
