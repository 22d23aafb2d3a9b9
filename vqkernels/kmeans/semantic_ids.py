"""Codes as identifiers: how many items share them, and a suffix that tells those apart."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vqkernels._core.checks import check_data, check_indices


class SemanticIds(NamedTuple):
    """Result of :func:`semantic_ids`."""

    ids: torch.Tensor  # [N, L + 1] int64: the codes, and a suffix; -1 throughout for an item left out
    num_unique: int  # different codes without the suffix
    collision_rate: float  # share of the items that have their codes in common with another
    largest: int  # most items with the same codes: so many different suffixes there are


@torch.no_grad()
def semantic_ids(
    indices: torch.Tensor,  # [N, L]
) -> SemanticIds:
    """Make the codes of items unique by a suffix, and report their collisions (TIGER; Rajput et al. 2023).

    Items with the same codes are numbered 0, 1, ... in the order in which they come, all others get 0.

    Args:
        indices: codes ``[N, L]`` of N items in L levels, such as :func:`vqkernels.residual_kmeans` and
            :meth:`ResidualQuantizer.encode` return. An item with a -1 is left out.

    Returns:
        ``SemanticIds(ids, num_unique, collision_rate, largest)``.

    Raises:
        TypeError: if indices are not integers.
        ValueError: if they are not ``[N, L]`` with at least one level.

    Example:
        >>> import torch, vqkernels
        >>> vqkernels.semantic_ids(torch.tensor([[5, 1], [5, 2], [5, 1]])).ids
        tensor([[5, 1, 0],
                [5, 2, 0],
                [5, 1, 1]])
    """
    check_indices("indices", indices)
    check_data("indices", indices)
    if indices.dim() != 2 or indices.shape[1] < 1:
        raise ValueError(f"indices: expected [N, L], got shape {list(indices.shape)}")
    ids = torch.full((len(indices), indices.shape[1] + 1), -1, device=indices.device)
    kept = (indices >= 0).all(dim=1).nonzero()[:, 0]
    codes = indices[kept].long()
    _, group, count = torch.unique(codes, dim=0, return_inverse=True, return_counts=True)
    order = group.argsort(stable=True)
    # place in the group: that among all, in order of groups, less where the group begins
    suffix = torch.empty_like(group)
    suffix[order] = torch.arange(len(order), device=order.device) - (count.cumsum(0) - count)[group[order]]
    ids[kept] = torch.cat([codes, suffix[:, None]], dim=1)
    sharing = int(count[count > 1].sum())
    return SemanticIds(ids, len(count), sharing / max(1, len(codes)), int(count.max()) if len(count) else 0)
