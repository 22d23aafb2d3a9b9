"""Clusters of bounded size: the assignment, and k-means with it."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch

from vqkernels._core.arguments import Backend, OneOf, Within, checked
from vqkernels._core.checks import check_codebook, check_data, check_floating, check_same_device, check_vectors
from vqkernels.kmeans.data import Chunk, Data, usable
from vqkernels.kmeans.lloyd import KMeansResult, State, lloyd
from vqkernels.kmeans.processes import Processes, check_group
from vqkernels.kmeans.source import HeldRows
from vqkernels.kmeans.tally import Tally, Totals
from vqkernels.kmeans.transport import Transport
from vqkernels.ops.nearest_code import NearestCode

METRICS = ("l2", "cosine")
MaxShare = Annotated[float, Within(1)]
_PIECE = 1 << 18  # numbers
_MOST = 0.25


@torch.no_grad()
@checked
def balanced_codes(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    *,
    max_share: MaxShare = 1.0,
    metric: Annotated[str, OneOf(METRICS)] = "l2",
    group: Any = None,
    backend: Backend = None,
) -> NearestCode:
    """Assign vectors to codes so that no code gets more than its share and the summed distance is least.

    How :func:`vqkernels.kmeans` assigns vectors when it is given ``max_share``: for a result with that ``max_share``,
    the labels that belong to its ``count`` and ``inertia``.

    Args:
        x: vectors ``[N, D]``, any floating point dtype. Rows that are not finite, or longer than 2^62 (``"cosine"``:
            or zero), are left out.
        codebook: codes ``[K, D]``.
        max_share: most rows of a code, in even shares N / K: with 1 all sizes are equal, up to rounding. The bound is
            ``max(ceil(N / K), floor(max_share N / K))``, N being the rows that are not left out.
        metric: ``"l2"`` (squared distance), or ``"cosine"`` (1 - cos).
        group: a ``torch.distributed`` process group over whose processes the rows are spread; N are those of all.
        backend: a backend by name for the lookups, or None (see :func:`vqkernels.explain`). ``"reference"`` also
            finds the paths without the compiled module, which every other one uses where it is there.

    Returns:
        ``NearestCode(indices, distance)``, ``[N]`` int64 and ``[N]`` float32; -1 and NaN for a row left out.

    Numerics:
        No size ever exceeds the bound, and the sum of distances is the least possible one, up to rounding in float32.
        How: a transport problem, by shortest paths (README.md). Same arguments, same bits, whatever the number of
        threads and processes. O(N + K) memory, but for very many equal rows, whose lists grow with the codes they
        fill; every process holds the lists of all rows.

    Raises:
        TypeError: if a tensor is not floating point.
        ValueError: on shapes or devices that do not match, an argument out of range, or codes that rows could not be
            (see ``x``): with a bound of sizes, every code has to serve.

    Example:
        >>> import torch, vqkernels
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
        >>> vqkernels.balanced_codes(x, torch.tensor([[1.0], [9.0]])).indices
        tensor([0, 0, 1, 1])
    """
    check_floating("x", x)
    check_floating("codebook", codebook)
    check_data("x", x)
    check_codebook(codebook)
    if codebook.dim() != 2 or x.dim() != 2:
        raise ValueError(f"x: expected [N, D] and codebook [K, D], got {list(x.shape)} and {list(codebook.shape)}")
    check_vectors(x, codebook)
    check_same_device(x=x, codebook=codebook)
    check_group(group)
    codes, _ = usable(codebook.detach(), None, metric)
    if len(codes) < len(codebook):
        which = "finite codes no longer than 2^62" + (" and not zero" if metric == "cosine" else "")
        raise ValueError(f"codebook: expected {which}, got {len(codebook) - len(codes)} that are not")
    kept = kept_rows(x, metric)
    data = Data(HeldRows(x), None, metric, backend, Processes(group))
    indices = torch.full((len(x),), -1, device=x.device)
    distance = torch.full((len(x),), torch.nan, device=x.device)
    if data.total:
        transport = Transport(data, capacity(data.total, len(codes), max_share))
        indices[kept] = transport.assign(codes.float()).labels
        distance[kept] = distances(transport.rows, codes.float(), indices[kept], metric)
    return NearestCode(indices, distance)


def kept_rows(rows: torch.Tensor, metric: str) -> torch.Tensor:  # [n, D] -> [m] int64
    """Positions of the rows that can be clustered."""
    # told by the weights that are kept with them
    _, number = usable(rows, torch.arange(1, len(rows) + 1, dtype=torch.float64, device=rows.device), metric)
    assert number is not None
    return number.long() - 1


def capacity(rows: int, num_codes: int, max_share: float) -> int:
    """Most rows of a cluster."""
    return max(-(-rows // num_codes), math.floor(min(max_share * rows / num_codes, rows)))


def distances(
    rows: torch.Tensor,  # [n, D]
    codes: torch.Tensor,  # [K, D]
    labels: torch.Tensor,  # [n]
    metric: str,
) -> torch.Tensor:  # [n] float32
    """Of every row to the code of its label; for cosine of unit vectors."""
    scale = 0.5 if metric == "cosine" else 1.0
    size = _PIECE // rows.shape[1] + 1
    parts = [
        scale * (piece.double() - codes[which].double()).square().sum(dim=1)
        for piece, which in zip(rows.split(size), labels.split(size), strict=True)
    ]
    return torch.cat(parts).float()


def balanced(data: Data, state: State, max_share: float, *, max_iter: int, tol: float, **told: Any) -> KMeansResult:
    """Lloyd's iteration with bounded clusters."""
    search = _BalancedPass(data, len(state.centroids), max_share)
    result = lloyd(data, state, max_iter=max_iter, tol=tol, assign=search, **told)
    # as it is of these centroids and nothing that came before
    found = search.afresh(result.centroids)
    history = [*result.history[:-1], found.inertia]
    return result._replace(count=found.count.float(), inertia=found.inertia, history=history)


class _BalancedPass:
    """One pass of k-means under a bound of sizes; in the place of :func:`vqkernels.kmeans.tally.tally`."""

    def __init__(self, data: Data, num_clusters: int, max_share: float) -> None:
        self.data = data
        self.transport = Transport(data, capacity(data.total, num_clusters, max_share))
        self.labels = torch.full((data.count,), -1, device=data.device)
        self.prices: torch.Tensor | None = None

    def __call__(self, centroids: torch.Tensor) -> Totals:  # [K, D]
        """Assign all rows, near the prices of the pass before, and add them up."""
        labels, prices = self.transport.assign(centroids, self.prices)
        found = self._totals(centroids, labels)
        # where most rows moved, the centroids will
        self.prices = prices if found.moved <= _MOST * self.data.total else None
        return found

    def afresh(self, centroids: torch.Tensor) -> Totals:  # [K, D]
        """The same as :func:`balanced_codes` assigns them, whatever was before."""
        return self._totals(centroids, self.transport.assign(centroids).labels)

    def _totals(self, centroids: torch.Tensor, labels: torch.Tensor) -> Totals:  # [K, D], [n]
        sums = Tally(self.data, len(centroids))
        rows = self.transport.rows
        distance = distances(rows, centroids, labels, self.data.metric)
        chunk = Chunk(rows, None, self.data.first)
        sums.take(chunk, NearestCode(labels, distance), NearestCode(self.labels, distance))
        sums.put(chunk, labels)
        self.labels = labels
        return sums.reduce().totals()
