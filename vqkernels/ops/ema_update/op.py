"""Operator ``vqkernels::ema_update_``: mutates its state, returns nothing."""

from __future__ import annotations

import torch

from vqkernels._core.backend import register_backends, select
from vqkernels._core.library import define_op

register_backends(
    "ema_update_",
    triton="vqkernels.ops.ema_update.triton",
    cpu="vqkernels.ops.ema_update.cpu",
    reference="vqkernels.ops.ema_update.reference",
)


def _ema_update(
    codebook: torch.Tensor,  # [G, K, D]
    cluster_size: torch.Tensor,  # [G, K]
    embed_sum: torch.Tensor,  # [G, K, D]
    count: torch.Tensor,  # [G, K]
    total: torch.Tensor,  # [G, K, D]
    decay: float,
    eps: float,
    normalize: bool,
    backend: str | None,
) -> None:
    args = (codebook, cluster_size, embed_sum, count, total, decay, eps, normalize)
    select("ema_update_", backend, *args).run(*args)


ema_update_op = define_op(
    "ema_update_(Tensor(a!) codebook, Tensor(b!) cluster_size, Tensor(c!) embed_sum, Tensor count, Tensor total, "
    "float decay, float eps, bool normalize, str? backend) -> ()",
    _ema_update,
)
