"""The public in-place re-anchoring step, and the two halves it is made of."""

from __future__ import annotations

import torch

from vqkernels._core.backend import check_backend
from vqkernels._core.checks import (
    check_choice,
    check_codebook,
    check_floating,
    check_indices,
    check_metric,
    check_number,
    check_same_device,
    check_seed,
    check_shape,
    check_vectors,
    check_writable,
)
from vqkernels._core.usable import usable_rows
from vqkernels.ops.code_stats import code_stats
from vqkernels.ops.reanchor.anchors import Anchors, closest_vectors, drawn_vectors, random_vectors

ANCHORS = ("closest", "random", "probabilistic")


@torch.no_grad()
def reanchor_(
    codebook: torch.Tensor,  # [K, D] or [G, K, D], in place
    usage: torch.Tensor,  # [K] or [G, K], in place
    x: torch.Tensor,  # [..., D] or [..., G, D]
    indices: torch.Tensor,  # [...] or [..., G]
    distance: torch.Tensor,  # [...] or [..., G]
    *,
    decay: float,
    anchor: str = "closest",
    metric: str = "l2",
    seed: int | torch.Tensor = 0,
    backend: str | None = None,
) -> None:
    """Move hardly used codes to vectors of the batch, in place (CVQ-VAE, Zheng and Vedaldi 2023).

    Per group, with N vectors that take part and z_k the anchor of code k::

        usage    = decay * usage + (1 - decay) * count / N
        a        = exp(-usage * K * 10 / (1 - decay) - 1e-3)
        codebook = (1 - a) * codebook + a * z

    ``a`` is nearly a step: 0.999 for a code that is never used, one half at a usage of 0.07 * (1 - decay) /
    K, 0 at the uniform share 1 / K.

    Args:
        codebook: codes, floating point, written in place.
        usage: running share of the vectors each code receives, float32, written in place; starts at zero.
        x: the vectors that were looked up.
        indices, distance: as returned by :func:`vqkernels.nearest_code`. A vector with index -1 or distance
            NaN takes no part, nor does one that is not finite or longer than 2^62.
        decay: of the running usage, in [0, 1).
        anchor: ``"closest"`` (the vector nearest to the code), ``"random"`` (every vector falls to one of the codes
            that hardly anybody uses, and each such code takes one of those that fall to it; with none it stays) or
            ``"probabilistic"`` (vector n with a probability proportional to exp(-distance); the published code's
            default, and MGVQ's).
        metric: of ``"closest"`` and ``"probabilistic"``, as in :func:`vqkernels.nearest_code`.
        seed: a draw is a function of it: an int, or an integer tensor on the same device.
        backend: a backend by name, or None.

    Numerics:
        O(N + K) memory. ``"closest"`` is exact, the first of equally near vectors wins. A draw is a function of the
        seed, of the place and bits of the code, and of the set of vectors: neither their order nor the number of
        threads matters, and equal vectors count once. Without any vector that takes part nothing is written.

    Raises:
        TypeError: on a dtype that does not fit.
        ValueError: on shapes or devices that do not match, or an argument out of range.

    Example:
        >>> import torch, vqkernels
        >>> codebook, usage = torch.tensor([[0.0], [9.0]]), torch.zeros(2)
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> vqkernels.reanchor_(codebook, usage, x, *vqkernels.nearest_code(x, codebook), decay=0.99)
        >>> [round(value, 2) for value in codebook.flatten().tolist()]
        [0.0, 1.01]
    """
    check_policy(decay, anchor)
    check_metric(metric)
    check_backend(backend)
    for name, tensor in (("codebook", codebook), ("usage", usage), ("x", x), ("distance", distance)):
        check_floating(name, tensor)
    check_indices("indices", indices)
    check_codebook(codebook)
    check_vectors(x, codebook)
    check_same_device(codebook=codebook, usage=usage, x=x, indices=indices, distance=distance)
    check_seed("seed", seed, x)
    check_writable("codebook", codebook)
    check_writable("usage", usage)
    check_shape("usage", usage, tuple(codebook.shape[:-1]), "codebook.shape[:-1]")
    check_shape("indices", indices, tuple(x.shape[:-1]), "x.shape[:-1]")
    check_shape("distance", distance, tuple(x.shape[:-1]), "x.shape[:-1]")
    book, share = (codebook, usage) if codebook.dim() == 3 else (codebook[None], usage[None])
    g, k, d = book.shape
    rows = x.reshape(-1, g, d)
    used = torch.where(distance.isnan().reshape(-1, g) | ~usable_rows(rows), -1, indices.reshape(-1, g))
    count = code_stats(rows[..., :1], used, k, groups=g, backend=backend).count
    anchors = choose_anchors(
        book, share, rows, used, decay=decay, anchor=anchor, metric=metric, seed=seed, backend=backend
    )
    blend_(book, share, count, anchors, decay)


def check_policy(decay: float, anchor: str) -> None:
    """Raise unless this re-anchoring policy exists."""
    check_choice("anchor", anchor, ANCHORS)
    check_number("decay", decay, 0, 1, without=(1,))


def choose_anchors(
    codebook: torch.Tensor,  # [G, K, D]
    usage: torch.Tensor,  # [G, K]
    x: torch.Tensor,  # [N, G, D]
    indices: torch.Tensor,  # [N, G], -1 = takes no part
    *,
    decay: float,
    anchor: str,
    metric: str,
    seed: int | torch.Tensor,
    backend: str | None = None,
) -> Anchors:
    """First half of :func:`reanchor_`: what each code would move to."""
    if anchor == "closest":
        return closest_vectors(codebook, x, indices, metric, backend)
    if anchor == "probabilistic":
        return drawn_vectors(codebook, x, indices, metric, seed, backend)
    # no vector is wasted on a code that would not move even if nobody used it now
    return random_vectors(x, indices, _pull(decay * usage, decay) > 0, seed, backend)


def blend_(
    codebook: torch.Tensor,  # [G, K, D], in place
    usage: torch.Tensor,  # [G, K], in place
    count: torch.Tensor,  # [G, K]
    anchors: Anchors,
    decay: float,
) -> None:
    """Second half of :func:`reanchor_`: the usage, and the move it calls for."""
    pull = advance_usage_(usage, count, decay)
    move_(codebook, anchors.vectors, torch.where(anchors.key.isfinite(), pull, 0))


def advance_usage_(
    usage: torch.Tensor,  # [G, K], in place
    count: torch.Tensor,  # [G, K]
    decay: float,
) -> torch.Tensor:  # [G, K]
    """Fold in this step's counts; returns how far each code is to move, from 0 to 1."""
    seen = count.sum(dim=1, keepdim=True)
    new = decay * usage + (1 - decay) * count / seen.clamp(min=1)
    usage.copy_(torch.where(seen > 0, new, usage))
    return _pull(usage, decay)


def _pull(usage: torch.Tensor, decay: float) -> torch.Tensor:  # [G, K] -> [G, K]
    return torch.exp(-usage * usage.shape[1] * 10 / (1 - decay) - 1e-3)


def move_(
    codebook: torch.Tensor,  # [G, K, D], in place
    target: torch.Tensor,  # [G, K, D]
    pull: torch.Tensor,  # [G, K]
) -> None:
    pull = pull[..., None]
    moved = torch.lerp(codebook, target.to(codebook.dtype), pull.to(codebook.dtype))
    # the target of a code that stays is not read: it may be NaN; a code that would not be finite stays
    moves = (pull > 0) & moved.isfinite().all(dim=-1, keepdim=True)
    codebook.copy_(torch.where(moves, moved, codebook))
