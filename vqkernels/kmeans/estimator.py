"""K-means as an estimator, by the conventions of scikit-learn, which it does not need."""

from __future__ import annotations

import importlib
import inspect
import sys
from functools import partial
from typing import Annotated, Any, Self

import numpy as np
import torch

from vqkernels._core.arguments import Backend, Count, Integer, NonNegative, OneOf, Size, checked
from vqkernels._core.wide import compared
from vqkernels.kmeans.api import METRICS, kmeans
from vqkernels.kmeans.arrays import as_source, as_weight, each_chunk, in_kind_of
from vqkernels.kmeans.data import Data
from vqkernels.kmeans.last_pass import LastPass
from vqkernels.kmeans.minibatch import Running
from vqkernels.kmeans.processes import Processes, check_group
from vqkernels.kmeans.seeding import given_init, start, too_many
from vqkernels.kmeans.source import HeldRows, MappedRows
from vqkernels.kmeans.tally import tally
from vqkernels.ops.nearest_code import nearest_code


class KMeans:
    """K-means clustering: :func:`vqkernels.kmeans` with ``fit``, ``predict`` and ``transform``.

    Works with scikit-learn's pipelines and searches where that is installed. NumPy in, NumPy out; torch in, torch
    out. Rows with a non-finite entry are left out of the fit; they are predicted as cluster 0.

    Args:
        n_clusters: K, at most the number of distinct rows.
        init: as in :func:`vqkernels.kmeans`; an array ``[K, D]`` is taken as well.
        n_init: as in :func:`vqkernels.kmeans`.
        max_iter: most updates of the centroids in a start.
        tol: as in :func:`vqkernels.kmeans`.
        random_state: seed: an integer, a ``numpy.random.RandomState``, or None for 0.
        metric: ``"l2"`` or ``"cosine"``.
        batch_size: None for Lloyd's algorithm, or the size of mini-batches.
        group: process group over whose processes the rows given to ``fit`` are spread.
        backend: a backend by name, or None.

    Attributes:
        cluster_centers_: centroids ``[K, D]``, float32.
        labels_: cluster of every row given to ``fit``, int64 ``[N]``.
        inertia_: summed distance of the rows to their nearest centroid.
        n_iter_: updates in the start that was kept.
        n_features_in_: D.

    Raises:
        TypeError: from the methods, if data are not numbers.
        ValueError: from the methods, on arguments out of range or data that do not fit.

    Example:
        >>> import numpy as np, vqkernels
        >>> x = np.array([[0.0], [1.0], [10.0], [11.0]])
        >>> vqkernels.KMeans(2).fit(x).predict([[2.0]]) == vqkernels.KMeans(2).fit_predict(x)[0]
        array([ True])
    """

    _estimator_type = "clusterer"

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        n_init: int = 1,
        max_iter: int = 25,
        tol: float = 1e-4,
        random_state: Any = None,
        metric: str = "l2",
        batch_size: int | None = None,
        group: Any = None,
        backend: str | None = None,
    ) -> None:
        self.n_clusters, self.init, self.n_init = n_clusters, init, n_init
        self.max_iter, self.tol, self.random_state = max_iter, tol, random_state
        self.metric, self.batch_size, self.group, self.backend = metric, batch_size, group, backend

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Cluster ``X [N, D]``; ``y`` is ignored."""
        self._check_options()
        source = as_source(X, least=self.n_clusters)
        weight = as_weight(sample_weight, source)
        best = kmeans(
            source,
            self.n_clusters,
            metric=self.metric,
            init=self.init,
            n_init=self.n_init,
            max_iter=self.max_iter,
            tol=self.tol,
            seed=self._seed(),
            weight=weight,
            batch_size=self.batch_size,
            group=self.group,
            backend=self.backend,
        )
        self.__dict__.pop("_running", None)
        self._keep(best.centroids, X)
        self.inertia_, self.n_iter_ = best.inertia, best.iterations
        self.labels_ = in_kind_of(X, self._labels(source))
        return self

    @torch.no_grad()
    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Move the centroids by one mini-batch; the first one starts them, or goes on from ``fit``."""
        self._check_options()
        fresh = not hasattr(self, "cluster_centers_")
        source = as_source(X, least=self.n_clusters if fresh else 1)
        if not fresh:
            self._check_dimension(source)
        data = Data(source, as_weight(sample_weight, source), self.metric, self.backend, Processes(self.group))
        if not hasattr(self, "_running"):
            if fresh and self.n_clusters > data.total:
                raise too_many(self.n_clusters, data.total, "usable")
            if fresh:
                centroids = start(data, self.n_clusters, given_init(self.init), self._seed())
            else:
                centroids = self._centers(source.device)
            self._running = Running(centroids, self.metric)
        found = tally(data, self._running.centroids, LastPass(data))
        self._running.take(found.count, found.total)
        self._keep(self._running.centroids, X)
        self.inertia_, self.n_iter_ = found.inertia, getattr(self, "n_iter_", 0) + 1
        self.labels_ = in_kind_of(X, self._labels(source))
        return self

    def predict(self, X: Any) -> Any:
        """The nearest centroid of every row, int64 ``[N]``."""
        return in_kind_of(X, self._labels(self._checked(X)))

    def transform(self, X: Any) -> Any:
        """Distance of every row to every centroid, ``[N, K]``: Euclidean, or 1 - cos."""
        source = self._checked(X)
        centers = self._centers(source.device).double()
        return in_kind_of(X, each_chunk(source, lambda rows: self._distances(rows, centers)))

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """The negative inertia of ``X``."""
        source = self._checked(X)
        data = Data(source, as_weight(sample_weight, source), self.metric, self.backend, Processes())
        return -tally(data, self._centers(source.device), LastPass(data)).inertia

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """``fit(X).labels_``."""
        return self.fit(X, sample_weight=sample_weight).labels_

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """``fit(X).transform(X)``."""
        return self.fit(X, sample_weight=sample_weight).transform(X)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Change arguments of the constructor."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise ValueError(f"params: expected some of {', '.join(known)}, got {name!r}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        changed = [f"{k}={v!r}" for k, v in self.get_params().items() if repr(v) != repr(defaults[k].default)]
        return f"KMeans({', '.join(changed)})"

    def __sklearn_tags__(self) -> Any:
        # only scikit-learn asks
        of = importlib.import_module("sklearn.utils")
        return of.Tags(
            estimator_type="clusterer",
            target_tags=of.TargetTags(required=False),
            transformer_tags=of.TransformerTags(),
            input_tags=of.InputTags(allow_nan=True),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "cluster_centers_")

    def _seed(self) -> int:
        state = self.random_state
        if isinstance(state, np.random.RandomState):
            return int(state.randint(1 << 31))
        return 0 if state is None else int(state)

    def _keep(self, centroids: torch.Tensor, like: Any) -> None:
        self.cluster_centers_ = in_kind_of(like, centroids)
        self.n_features_in_ = centroids.shape[1]

    def _centers(self, device: torch.device) -> torch.Tensor:  # [K, D]
        return torch.as_tensor(self.cluster_centers_).to(device)

    def _labels(self, source: HeldRows | MappedRows) -> torch.Tensor:  # [N, D] -> [N]
        centers = self._centers(source.device)
        lookup = partial(nearest_code, metric=self.metric, backend=self.backend)
        return each_chunk(source, lambda rows: lookup(rows, centers).indices)

    def _distances(self, rows: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:  # [n, D], [K, D] -> [n, K]
        wide = rows.double()
        if self.metric == "cosine":
            wide = compared(wide, "cosine")
            norm = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
            unit = wide / norm.where(norm > 0, 1)
            distance: torch.Tensor = 1 - unit @ torch.nn.functional.normalize(centers, dim=1).T
        else:
            distance = torch.cdist(wide, centers, compute_mode="donot_use_mm_for_euclid_dist")
        return distance.to(rows.dtype)

    def _check_options(self) -> None:
        # not when they are set: that is for scikit-learn to do, in any order
        names = ("n_clusters", "n_init", "max_iter", "tol", "random_state", "metric", "batch_size", "backend")
        _check_options(**{name: getattr(self, name) for name in names})
        check_group(self.group)

    def _checked(self, X: Any) -> HeldRows | MappedRows:  # [N, D]
        self._check_options()
        if not hasattr(self, "cluster_centers_"):
            raise _not_fitted()(f"{type(self).__name__}: expected a call of fit before, got none")
        source = as_source(X, least=1)
        self._check_dimension(source)
        return source

    def _check_dimension(self, source: HeldRows | MappedRows) -> None:
        if source.rows.shape[1] != self.n_features_in_:
            name, expected = type(self).__name__, self.n_features_in_
            got = source.rows.shape[1]
            raise ValueError(f"X has {got} features, but {name} is expecting {expected} features as input")


@checked
def _check_options(
    n_clusters: Size,
    n_init: Size,
    max_iter: Count,
    tol: NonNegative,
    random_state: Integer | np.random.RandomState | None,
    metric: Annotated[str, OneOf(METRICS)],
    batch_size: Size | None,
    backend: Backend,
) -> None: ...


class NotFittedError(ValueError, AttributeError):
    """A method was called that needs a fit."""


def _not_fitted() -> type[Exception]:
    """scikit-learn's own error, which its users catch, where it is loaded."""
    loaded = sys.modules.get("sklearn.exceptions")
    return loaded.NotFittedError if loaded else NotFittedError
