"""K-means in levels: each clusters what the levels before left of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from vqkernels._core.arguments import Backend, Count, Integer, NonNegative, Size, checked
from vqkernels._core.checks import check_tensor, each_of
from vqkernels.kmeans.api import kmeans
from vqkernels.kmeans.balanced import MaxShare, balanced_codes, kept_rows
from vqkernels.kmeans.source import Source, open_source
from vqkernels.ops.nearest_code import nearest_code


class ResidualKMeansResult(NamedTuple):
    """Result of :func:`residual_kmeans`, an entry for each of L levels."""

    centroids: tuple[torch.Tensor, ...]  # [K_l, D] float32
    indices: torch.Tensor  # [N, L] int64, of this process's rows; -1 for a row left out
    count: tuple[torch.Tensor, ...]  # type: ignore[assignment]  # [K_l] float32
    inertia: tuple[float, ...]  # summed squared distance after each level


@torch.no_grad()
@checked
def residual_kmeans(
    x: Any,  # [N, D]
    num_clusters: Sequence[Size],
    *,
    init: Any = "k-means++",
    n_init: Size = 1,
    max_iter: Count = 25,
    tol: NonNegative = 1e-4,
    seed: Integer = 0,
    weight: Any = None,  # [N]
    max_share: MaxShare | None = None,
    progress: bool = False,
    group: Any = None,
    backend: Backend = None,
) -> ResidualKMeansResult:
    """Cluster vectors, then what is left of them, and so on: codebooks and codes for :class:`ResidualQuantizer`.

    Each level is :func:`vqkernels.kmeans` of the rows less their centroids of the levels before (RQ-k-means). The
    ``indices`` are the semantic IDs of generative recommenders; :func:`vqkernels.semantic_ids` makes them unique.

    Args:
        x: vectors ``[N, D]``, wherever :func:`vqkernels.kmeans` takes them from. What is left is computed as it is
            read, and never held where x is not.
        num_clusters: K of each level.
        init: as in :func:`vqkernels.kmeans`, or the centroids to start from, ``[K_l, D]`` for each level.
        n_init: as in :func:`vqkernels.kmeans`.
        max_iter: as in :func:`vqkernels.kmeans`.
        tol: as in :func:`vqkernels.kmeans`.
        seed: as in :func:`vqkernels.kmeans`; the same one for every level.
        weight: as in :func:`vqkernels.kmeans`.
        max_share: as in :func:`vqkernels.kmeans`: of the clusters of every level. Rows are then held in memory.
        progress: as in :func:`vqkernels.kmeans`.
        group: as in :func:`vqkernels.kmeans`: each process gets the indices of its own rows.
        backend: as in :func:`vqkernels.kmeans`.

    Returns:
        ``ResidualKMeansResult(centroids, indices, count, inertia)``. Of new vectors the codes are found with
        :func:`vqkernels.nearest_code`, level by level.

    Raises:
        OSError: if a file cannot be read.
        TypeError: if x is no rows of floating point numbers.
        ValueError: as :func:`vqkernels.kmeans`, or without a level.

    Example:
        >>> import torch, vqkernels
        >>> x = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> result = vqkernels.residual_kmeans(x, [2, 2])
        >>> result.inertia
        (1.0, 0.0)
        >>> torch.equal(result.centroids[0][result.indices[:, 0]] + result.centroids[1][result.indices[:, 1]], x)
        True
    """
    if not num_clusters:
        raise ValueError("num_clusters: expected one number for each level, got none")
    starts = [init] * len(num_clusters) if isinstance(init, str) else _each(init)
    if len(starts) != len(num_clusters):
        raise ValueError(f"init: expected centroids for {len(num_clusters)} levels, got {len(starts)}")
    left = Left(open_source(x))
    counts, inertia = [], []
    for size, begin in zip(num_clusters, starts, strict=True):
        found = kmeans(
            left,
            size,
            init=begin,
            n_init=n_init,
            max_iter=max_iter,
            tol=tol,
            seed=seed,
            weight=weight,
            max_share=max_share,
            progress=progress,
            group=group,
            backend=backend,
        )
        labels = labels_of(left, found.centroids, max_share=max_share, group=group, backend=backend)
        left = left.less(found.centroids, labels)
        counts.append(found.count)
        inertia.append(found.inertia)
    return ResidualKMeansResult(left.centroids, torch.stack(left.labels, dim=1), tuple(counts), tuple(inertia))


def _each(init: Any) -> list[Any]:
    """What each level starts from."""
    if isinstance(init, torch.Tensor):
        check_tensor("init", init)
    if isinstance(init, (torch.Tensor, np.ndarray)) and init.ndim > 0:
        return list(init)
    return list(each_of("init", init))


@dataclass(frozen=True)
class Left:
    """Rows of a source, less the centroids of some levels; NaN for those left out."""

    source: Source
    centroids: tuple[torch.Tensor, ...] = ()  # [K_l, D]
    labels: tuple[torch.Tensor, ...] = ()  # [N]

    @property
    def in_memory(self) -> bool:
        return self.source.in_memory

    def less(self, centroids: torch.Tensor, labels: torch.Tensor) -> Left:  # [K, D], [N]
        """What another level leaves."""
        return Left(self.source, (*self.centroids, centroids), (*self.labels, labels))

    def chunks(self) -> Iterator[torch.Tensor]:
        start = 0
        for rows in self.source.chunks():
            stop = start + len(rows)
            for centroids, labels in zip(self.centroids, self.labels, strict=True):
                which = labels[start:stop]
                rows = torch.where((which < 0)[:, None], torch.nan, rows - centroids[which.clamp(min=0)])
            yield rows
            start = stop


def labels_of(
    left: Left,
    centroids: torch.Tensor,  # [K, D]
    *,
    metric: str = "l2",
    max_share: float | None = None,
    group: Any = None,
    backend: str | None = None,
) -> torch.Tensor:  # [N] int64
    """The clusters of all rows of this process in a result of k-means; -1 for a row left out."""
    if max_share is not None:
        rows = torch.cat([centroids.new_empty(0, centroids.shape[1]), *left.chunks()])
        found = balanced_codes(rows, centroids, max_share=max_share, metric=metric, group=group, backend=backend)
        return found.indices
    parts = [torch.empty(0, dtype=torch.int64, device=centroids.device)]
    for rows in left.chunks():
        kept = kept_rows(rows, metric)
        parts.append(torch.full((len(rows),), -1, device=rows.device))
        parts[-1][kept] = nearest_code(rows[kept], centroids, metric=metric, backend=backend).indices
    return torch.cat(parts)
