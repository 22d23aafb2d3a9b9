"""The public in-place EMA update: checks, canonical layout, one operator call."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vqkernels._core.backend import check_backend
from vqkernels._core.checks import (
    check_codebook,
    check_flag,
    check_floating,
    check_number,
    check_same_device,
    check_shape,
    check_writable,
)
from vqkernels._core.shown import shown
from vqkernels.ops.ema_update.op import ema_update_op


def no_step_if_empty(count: torch.Tensor) -> torch.Tensor:  # [..., K] -> [..., K]
    """Counts by which :func:`ema_update_` leaves the state as it is where no vector was counted at all."""
    return torch.where(count.sum(dim=-1, keepdim=True) > 0, count, torch.nan)


@torch.no_grad()
def ema_update_(
    codebook: torch.Tensor,  # [K, D] or [G, K, D], in place
    cluster_size: torch.Tensor,  # [K] or [G, K], in place
    embed_sum: torch.Tensor,  # [K, D] or [G, K, D], in place
    count: torch.Tensor,  # [K] or [G, K]
    total: torch.Tensor,  # [K, D] or [G, K, D]
    *,
    decay: float,
    eps: float = 1e-5,
    normalize: bool = False,
    backend: str | None = None,
) -> None:
    """Fold one step's statistics into an EMA codebook, in place.

    Per group (van den Oord et al. 2017, appendix A.1, with Laplace smoothing)::

        cluster_size = decay * cluster_size + (1 - decay) * count
        embed_sum    = decay * embed_sum    + (1 - decay) * total
        n            = sum(cluster_size)
        codebook     = embed_sum / ((cluster_size + eps) / (n + K * eps) * n)

    Args:
        codebook, cluster_size, embed_sum: the state, contiguous and of one floating point dtype, written in place.
        count, total: as returned by :func:`vqkernels.code_stats` for the same K, D (and G).
        decay: in [0, 1].
        eps: Laplace smoothing, at least 0. It pulls unused codes towards the origin a little every step; with
            ``eps=0`` the division is plain and a code that was never used keeps its value.
        normalize: scale every code to unit length (cosine codebooks); a zero code stays zero.
        backend: a backend by name, or None.

    Numerics:
        float32 arithmetic, n summed in float64; a state of 16 bits is rounded at the end. A code whose statistics
        would not be finite keeps its state; one that would not be finite itself keeps its value.

    Raises:
        TypeError: if a tensor is not floating point.
        ValueError: on shapes, devices or dtypes that do not match, non-contiguous state, ``decay`` or ``eps`` out
            of range.

    Example:
        >>> import torch, vqkernels
        >>> codebook, size, total = torch.zeros(2, 1), torch.zeros(2), torch.zeros(2, 1)
        >>> new = vqkernels.code_stats(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]), 2)
        >>> vqkernels.ema_update_(codebook, size, total, *new, decay=0.5, eps=0.0)
        >>> codebook.tolist()
        [[2.0], [0.0]]
    """
    state = {"codebook": codebook, "cluster_size": cluster_size, "embed_sum": embed_sum}
    for name, tensor in {**state, "count": count, "total": total}.items():
        check_floating(name, tensor)
    check_backend(backend)
    check_codebook(codebook)
    check_same_device(**state, count=count, total=total)
    shape = tuple(codebook.shape)
    for name, tensor, expected in (
        ("cluster_size", cluster_size, shape[:-1]),
        ("embed_sum", embed_sum, shape),
        ("count", count, shape[:-1]),
        ("total", total, shape),
    ):
        check_shape(name, tensor, expected, "codebook.shape" + ("[:-1]" if len(expected) < len(shape) else ""))
    for name, tensor in state.items():
        if tensor.dtype != codebook.dtype:
            raise ValueError(f"{name}: expected the dtype of the codebook, {codebook.dtype}, got {tensor.dtype}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name}: expected a contiguous tensor, got strides {shown(list(tensor.stride()))}")
        check_writable(name, tensor)
    decay, eps = check_number("decay", decay, 0, 1), check_number("eps", eps, 0)
    normalize = check_flag("normalize", normalize)
    g = shape[0] if len(shape) == 3 else 1
    flat, deep = (g, shape[-2]), (g, *shape[-2:])
    given = codebook.detach().view(deep), cluster_size.detach().view(flat), embed_sum.detach().view(deep)
    dtype = torch.promote_types(codebook.dtype, torch.float32)
    wide = [tensor.to(dtype) for tensor in given]
    step = count.detach().reshape(flat).to(dtype), total.detach().reshape(deep).to(dtype)
    ema_update_op(*wide, *step, decay, eps, normalize, backend)
    if dtype != codebook.dtype:
        _narrow(given, wide)


def _narrow(given: Sequence[torch.Tensor], wide: Sequence[torch.Tensor]) -> None:
    """Round an updated state to the dtype in which it is kept; what that makes infinite stays as it was."""
    codes, size, sums = (new.to(old.dtype) for old, new in zip(given, wide, strict=True))
    fits = size.isfinite() & sums.isfinite().all(dim=-1)
    for old, new, keep in (
        (given[0], codes, fits & codes.isfinite().all(dim=-1)),
        (given[1], size, fits),
        (given[2], sums, fits),
    ):
        old.copy_(torch.where(keep if new.dim() == keep.dim() else keep[..., None], new, old))
