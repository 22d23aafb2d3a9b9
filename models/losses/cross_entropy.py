"""Cross entropy of a linear layer's logits without the logits of a whole batch.

N positions, W width, K codes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

LOGITS_AT_ONCE = 2**24  # 64 MB of float32


class CrossEntropy(NamedTuple):
    loss: torch.Tensor  # [N], with label smoothing
    nll: torch.Tensor  # [N], without


def linear_cross_entropy(
    hidden: torch.Tensor,  # [N, W]
    weight: torch.Tensor,  # [K, W]
    targets: torch.Tensor,  # [N]
    *,
    label_smoothing: float = 0.0,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> CrossEntropy:
    """Cross entropy of ``hidden @ weight.T``, per position, in float32 or wider.

    At most ``logits_at_once`` logits exist at a time; the backward pass computes those of more positions again (by
    torch's own chunked function, in torch from 2.13). Under autocast the products are in its type.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    rows = max(logits_at_once // len(weight), 1)
    with torch.autocast(device, enabled=False):
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        if len(hidden) <= rows:
            logits = F.linear(hidden, weight)
            nll = F.cross_entropy(logits.to(torch.promote_types(dtype, torch.float32)), targets, reduction="none")
        else:
            options = nn.LinearCrossEntropyOptions(batch_chunk_size=rows)
            nll = F.linear_cross_entropy(hidden, weight, targets, reduction="none", options=options)
            nll = nll.to(torch.promote_types(dtype, torch.float32))
        if not label_smoothing:
            return CrossEntropy(nll, nll)
        # a smoothed target moves a share of its weight from the code to all codes, whose mean logit is one product
        # with the mean row of the weight
        direction = F.embedding(targets, weight) - weight.mean(0)  # [N, W]
        surplus = (hidden * direction).sum(1)  # [N]
        return CrossEntropy(nll + label_smoothing * surplus, nll)
