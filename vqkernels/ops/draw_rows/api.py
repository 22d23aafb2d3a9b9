"""The draw of a vector for each code: random numbers, one operator call. Its callers have checked the arguments."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vqkernels.ops.draw_rows.op import draw_rows_op


class DrawnRows(NamedTuple):
    """Result of :func:`draw_rows`."""

    rows: torch.Tensor  # [K] int64; 0 where there is none
    key: torch.Tensor  # [K] float64, the least of all vectors; infinite where there is none


def draw_rows(
    codes: list[torch.Tensor],  # L of [K, D_l]
    x: list[torch.Tensor],  # L of [N, D_l]
    usable: torch.Tensor,  # [N] bool
    *,
    seed: torch.Tensor | int,
    metric: str = "l2",
    weights: list[float] | None = None,
    backend: str | None = None,
) -> DrawnRows:
    """Draw for each code a vector with a probability proportional to ``exp(-distance)``.

    Args:
        codes, x: codes and vectors in L levels of one dtype; one level unless ``metric`` is ``"levels"``.
        usable: which vectors may be drawn; one that is not finite never is.
        seed: a draw is a function of it, of the place of the code, and of the bits of code and vector.
        metric: as in :func:`vqkernels.nearest_code`, or ``"levels"``: ``sum_l weights[l] * |x_l - c_l|``.
        weights: one per level, finite and not negative.
        backend: a backend by name, or None.

    Returns:
        ``DrawnRows(rows, key)``. Of several sets of vectors, the draw from all of them is the one with the least key.

    Example:
        >>> import torch
        >>> codes, x = [torch.tensor([[0.0], [90.0]])], [torch.tensor([[0.0], [91.0]])]
        >>> draw_rows(codes, x, torch.tensor([True, True]), seed=0).rows
        tensor([0, 1])
    """
    number = torch.as_tensor(seed, dtype=torch.int64, device=usable.device)
    codes, x = [level.detach() for level in codes], [level.detach() for level in x]
    return DrawnRows(*draw_rows_op(codes, x, weights or [1.0], metric, usable, number, backend))
