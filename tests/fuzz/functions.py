"""Right calls of the public functions, to be spoilt in one or two arguments, and what their answers have to equal."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from outcome import nonfinite

import vqkernels
from vqkernels import distributed
from vqkernels.nn import sign_entropy
from vqkernels.testing import assert_exact_lookup

Arguments = dict[str, Any]
Pick = Callable[..., Any]


@dataclass(frozen=True)
class Function:
    """A function, how to call it rightly, which of its arguments it writes, and the truth about its result."""

    call: Callable[..., Any]
    arguments: Callable[[Pick], Arguments]  # of `pick`, which chooses one of its arguments
    written: tuple[str, ...] = ()
    check: Callable[[Arguments, Any], None] = field(default=lambda arguments, result: None)

    @property
    def names(self) -> tuple[str, ...]:
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return tuple(p.name for p in inspect.signature(self.call).parameters.values() if p.kind in kinds)


def sizes(pick: Pick) -> tuple[tuple[int, ...], int, int, int | None, torch.dtype]:
    """Leading shape of vectors, K, D, G and a dtype."""
    return (
        pick((5,), (1,), (2, 3), (0,), ()),
        pick(4, 1, 9),
        pick(3, 1, 8),
        pick(None, None, 2),
        pick(torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16),
    )


def lookup(pick: Pick) -> Arguments:
    lead, k, d, g, dtype = sizes(pick)
    groups = () if g is None else (g,)
    x = torch.randn(*lead, *groups, d).to(dtype)
    return {"x": x, "codebook": torch.randn(*groups, k, d).to(pick(dtype, torch.float32))}


def assigned(pick: Pick) -> Arguments:
    lead, k, d, g, dtype = sizes(pick)
    groups = () if g is None else (g,)
    x = torch.randn(*lead, *groups, d).to(dtype)
    return {
        "x": x,
        "indices": torch.randint(-1, k, (*lead, *groups)),
        "groups": g,
        "weight": pick(None, torch.rand((*lead, *groups))),
        "num_codes": 9,
    }


def statistics(pick: Pick) -> Arguments:
    arguments = assigned(pick)
    within = vqkernels.code_range(**arguments) if pick(False, True) else None
    return {**arguments, "within": within, "deterministic": within is not None or pick(True, False)}


def updated(pick: Pick) -> Arguments:
    _, k, d, g, _ = sizes(pick)
    shape = (k, d) if g is None else (g, k, d)
    state = {"codebook": torch.randn(shape), "cluster_size": torch.rand(shape[:-1]), "embed_sum": torch.randn(shape)}
    return {
        **state,
        "count": torch.rand(shape[:-1]),
        "total": torch.randn(shape),
        "decay": 0.9,
        "eps": 1e-5,
        "normalize": pick(False, True),
    }


def reanchored(pick: Pick) -> Arguments:
    arguments = lookup(pick)
    arguments["codebook"] = arguments["codebook"].float()
    found = vqkernels.nearest_code(arguments["x"], arguments["codebook"])
    usage = torch.rand(arguments["codebook"].shape[:-1]) * pick(0, 1)
    policy = {
        "decay": 0.9,
        "anchor": pick("closest", "random", "probabilistic"),
        "metric": "l2",
        "seed": pick(0, torch.tensor(3)),
    }
    return {**arguments, "usage": usage, "indices": found.indices, "distance": found.distance, **policy}


def semantic(pick: Pick) -> Arguments:
    lead = pick((5,), (2, 2), (0,))
    x, codebook = torch.randn(*lead, 3), torch.randn(4, 3)
    found = vqkernels.nearest_code(x, codebook)
    labels = torch.randint(-1, 2, lead)
    return {
        "codebook": codebook,
        "usage": torch.zeros(4),
        "x": x,
        "indices": found.indices,
        "distance": found.distance,
        "labels": labels,
        "class_embedding": torch.randn(2, pick(1, 2)),
        "decay": 0.9,
        "high_weight": 1.0,
        "anchor": pick("closest", "probabilistic"),
        "seed": 0,
    }


def entropy(pick: Pick) -> Arguments:
    arguments = lookup(pick)
    weight = torch.rand(arguments["x"].shape[:-1])
    return {
        **arguments,
        "metric": pick("l2", "euclidean", "cosine", "dot"),
        "temperature": pick(0.5, torch.tensor(0.5)),
        "weight": pick(None, weight, weight > 0.5),
        "smoothing": pick("none", "add", "clamp"),
        "eps": 1e-5,
        "reduce": None,
    }


def multilevel(pick: Pick) -> Arguments:
    lead = pick((4,), (2, 3), (0,))
    return {
        "xs": [torch.randn(*lead, 2), torch.randn(*lead, 1)],
        "codebooks": (torch.randn(5, 2), torch.randn(5, 1)),
        "weights": pick([1.0, 0.5], (1, 0), torch.tensor([1.0, 2.0])),
        "squared": pick(False, True),
    }


def clustered(pick: Pick) -> Arguments:
    n, k, d = pick(12, 5, 40), pick(3, 1), pick(2, 1)
    x = torch.randn(n, d)
    return {
        "x": pick(x, x.numpy(), x.double(), [x[:3], x[3:]]),
        "num_clusters": k,
        "metric": pick("l2", "cosine"),
        "init": pick("k-means++", "hierarchical", "random", torch.randn(k, d)),
        "n_init": 1,
        "max_iter": 3,
        "tol": 1e-4,
        "seed": 0,
        "weight": pick(None, torch.rand(n)),
        "batch_size": pick(None, 4),
    }


def balanced(pick: Pick) -> Arguments:
    n, k, d = pick(12, 5, 0), pick(3, 1), pick(2, 1)
    return {
        "x": torch.randn(n, d).to(pick(torch.float32, torch.float64, torch.bfloat16)),
        "codebook": torch.randn(k, d),
        "max_share": pick(1.0, 1.5, 2.0),
        "metric": pick("l2", "cosine"),
    }


def residuals(pick: Pick) -> Arguments:
    x = torch.randn(pick(12, 40), pick(2, 1))
    return {
        "x": pick(x, x.numpy(), x.double()),
        "num_clusters": pick([3, 2], (2,), [3, 3, 3]),
        "init": pick("k-means++", "random"),
        "n_init": 1,
        "max_iter": 2,
        "tol": 1e-4,
        "seed": 0,
        "weight": pick(None, torch.rand(len(x))),
        "max_share": pick(None, None, 1.5),
    }


def estimated(pick: Pick) -> Arguments:
    n, k, d = pick(12, 5, 40), pick(3, 1), pick(2, 1)
    x = torch.randn(n, d)
    return {
        "X": pick(x, x.numpy(), x.tolist(), x.double().numpy()),
        "sample_weight": pick(None, torch.rand(n) + 0.1, np.ones(n)),
        "n_clusters": k,
        "init": pick("k-means++", "random", np.random.default_rng(0).normal(size=(k, d))),
        "n_init": 1,
        "max_iter": 3,
        "tol": 1e-4,
        "random_state": pick(None, 0, np.random.RandomState(0)),
        "metric": pick("l2", "cosine"),
        "batch_size": pick(None, 4),
        "group": None,
        "backend": None,
    }


def estimator(method: str, *, fitted: bool) -> Callable[..., Any]:
    """A call of a method of :class:`vqkernels.KMeans` that takes the arguments of the constructor too."""
    made = inspect.signature(vqkernels.KMeans).parameters
    given = inspect.signature(getattr(vqkernels.KMeans, method)).parameters
    names = [*made, *(name for name in given if name not in ("self", "y"))]

    def call(**arguments: Any) -> Any:
        clusters = vqkernels.KMeans(**{name: value for name, value in arguments.items() if name in made})
        if fitted:
            clusters.cluster_centers_, clusters.n_features_in_ = torch.zeros(3, 2), 2
        return getattr(clusters, method)(**{name: value for name, value in arguments.items() if name not in made})

    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    )
    return call


def of_processes(pick: Pick) -> Arguments:
    n, k, d, g = pick(5, 0), pick(4, 1), pick(3, 1), pick(1, 2)
    return {"x": torch.randn(n, g, d), "indices": torch.randint(-1, k, (n, g)), "num_codes": k, "synchronised": True}


def under_backend(backend: Any) -> None:
    with vqkernels.use_backend(backend):
        vqkernels.nearest_code(torch.zeros(2, 3), torch.ones(4, 3))


def rounded(count: Any, total: Any, within: Any, weighted: Any, dtype: Any) -> Any:
    return vqkernels.CodeStats(count, total).rounded(within, weighted=weighted, dtype=dtype)


def fits_float64(tensor: torch.Tensor) -> bool:
    """Whether float64 holds the squares of all finite entries."""
    return not bool(((tensor.double().abs() > 1e150) & tensor.isfinite()).any())


def nearest_is_exact(arguments: Arguments, result: Any) -> None:
    if arguments["x"].is_meta or not all(fits_float64(arguments[name]) for name in ("x", "codebook")):
        return
    assert_exact_lookup(arguments["x"], arguments["codebook"], *result, metric=arguments.get("metric", "l2"))


def quantized_is_exact(arguments: Arguments, result: Any) -> None:
    nearest_is_exact(arguments, result[1:])


def first_of_top_is_nearest(arguments: Arguments, result: Any) -> None:
    nearest_is_exact(arguments, (result.indices[..., 0].contiguous(), result.distance[..., 0].contiguous()))


def entropies_are_finite(arguments: Arguments, result: Any) -> None:
    """Nothing of a vector, a code or a weight that is not finite gets into them."""
    if isinstance(arguments["temperature"], torch.Tensor) or arguments["x"].is_meta:
        return
    assert nonfinite(result._asdict()) == []


FUNCTIONS = {
    "nearest_code": Function(vqkernels.nearest_code, lookup, check=nearest_is_exact),
    "top_codes": Function(vqkernels.top_codes, lambda pick: {**lookup(pick), "m": 1}, check=first_of_top_is_nearest),
    "quantize": Function(vqkernels.quantize, lookup, check=quantized_is_exact),
    "multilevel_nearest_code": Function(vqkernels.multilevel_nearest_code, multilevel),
    "gather_codes": Function(
        vqkernels.gather_codes,
        lambda pick: {"codebook": torch.randn(4, 3), "indices": torch.randint(-1, 4, pick((5,), (2, 3), (0,), ()))},
    ),
    "estimate_gradient": Function(
        vqkernels.estimate_gradient,
        lambda pick: {
            "x": torch.randn(4, 3),
            "codes": torch.randn(4, 3),
            "gradient": pick("ste", "rotation", "none"),
        },
    ),
    "code_range": Function(vqkernels.code_range, assigned),
    "code_stats": Function(vqkernels.code_stats, statistics),
    "CodeStats.rounded": Function(
        rounded,
        lambda pick: {
            "count": torch.ones(3, dtype=torch.int64),
            "total": torch.ones(3, 2, dtype=torch.int64),
            "within": torch.tensor([1, 1, 3, 0]),
            "weighted": False,
            "dtype": torch.float32,
        },
    ),
    "ema_update_": Function(vqkernels.ema_update_, updated, ("codebook", "cluster_size", "embed_sum")),
    "reanchor_": Function(vqkernels.reanchor_, reanchored, ("codebook", "usage")),
    "semantic_reanchor_": Function(vqkernels.semantic_reanchor_, semantic, ("codebook", "usage")),
    "soft_assignment_entropy": Function(vqkernels.soft_assignment_entropy, entropy, check=entropies_are_finite),
    "sign_entropy": Function(
        sign_entropy,
        lambda pick: {"x": torch.randn(5, 3), "temperature": 0.5, "scale": 1.0, "weight": pick(None, torch.rand(5))},
        check=entropies_are_finite,
    ),
    "kmeans": Function(vqkernels.kmeans, clustered),
    "residual_kmeans": Function(vqkernels.residual_kmeans, residuals),
    "balanced_codes": Function(vqkernels.balanced_codes, balanced),
    "semantic_ids": Function(
        vqkernels.semantic_ids, lambda pick: {"indices": torch.randint(0, 3, (pick(5, 1, 0), pick(2, 1)))}
    ),
    **{f"KMeans.{method}": Function(estimator(method, fitted=False), estimated) for method in ("fit", "partial_fit")},
    **{
        f"KMeans.{method}, fitted": Function(
            estimator(method, fitted=True),
            lambda pick, names=names: {"X": torch.randn(5, 2), **{name: torch.rand(5) for name in names}},
        )
        for method, names in {"predict": (), "transform": (), "score": ("sample_weight",), "partial_fit": ()}.items()
    },
    "explain": Function(
        lambda op, arg, backend: vqkernels.explain(op, arg, backend=backend),
        lambda pick: {"op": "nearest_code", "arg": torch.zeros(4, 1, 3), "backend": pick(None, "reference")},
    ),
    "use_backend": Function(under_backend, lambda pick: {"backend": "reference"}),
    "sum_with_gradient": Function(distributed.sum_with_gradient, lambda pick: {"tensor": torch.ones(3)}),
    "sum_of_all": Function(lambda tensors: distributed.sum_of_all(tensors), lambda pick: {"tensors": torch.ones(3)}),
    "stats_of_all": Function(distributed.stats_of_all, of_processes),
}
