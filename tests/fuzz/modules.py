"""Modules: how to make one rightly, and how to call its methods rightly; both to be spoilt."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

import vqkernels
from vqkernels import nn

Arguments = dict[str, Any]
Pick = Callable[..., Any]


@dataclass(frozen=True)
class Kind:
    """A class of modules, options that it can be made with, and its methods with arguments for them."""

    make: Callable[..., Any]
    options: Callable[[], list[Arguments]]
    methods: dict[str, Callable[[Any, Pick], Arguments]] = field(default_factory=dict)
    checks: dict[str, Callable[[Any, Arguments, Any], None]] = field(default_factory=dict)  # by method
    further: tuple[str, ...] = ()  # arguments of the constructor that it hands on

    @property
    def names(self) -> tuple[str, ...]:
        return (*parameters(self.make), *self.further)


def parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(
        p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds and p.name != "self"
    )


def vectors(dim: int, pick: Pick, first: bool = False) -> torch.Tensor:
    lead = pick((2, 5), (3, 4), (2, 0), (1, 1))
    x = torch.randn(*lead, dim) * pick(1.0, 1.0, 100.0)
    return x.movedim(-1, 1) if first else x


def masked(x: torch.Tensor, dim: int, pick: Pick) -> torch.Tensor | None:
    return pick(None, torch.rand(x.shape[:dim] + x.shape[dim:][1:] if dim >= 0 else x.shape[:-1]) > 0.5)


def quantizer_options() -> list[Arguments]:
    base = {"dim": 4, "num_codes": 6}
    frozen = {"features": torch.randn(6, 4)}
    return [
        base,
        {**base, "codebook": vqkernels.Ema(decay=0.9, dead_after=2), "metric": "cosine"},
        {**base, "codebook": vqkernels.Ema(accumulate=2), "code_dim": 2, "usage_window": 3},
        {
            **base,
            "codebook": vqkernels.OnlineClustering(anchor="random"),
            "groups": 2,
            "nested_keep_probs": (0.5, 0.5),
        },
        {**base, "codebook": vqkernels.OnlineClustering(anchor="probabilistic"), "channels_first": True},
        {**base, "codebook": vqkernels.Frozen(**frozen), "gradient": "rotation"},
        {**base, "codebook": vqkernels.Frozen(**frozen, projector="mlp", tuned=True), "sampling_temperature": 0.5},
        {**base, "gradient": vqkernels.FullCodebook(), "metric": "dot", "backend": "reference"},
        {**base, "codebook": vqkernels.SemanticClustering(num_classes=3, levels=2, label="histogram")},
        {**base, "codebook": vqkernels.Ema(), "groups": 2, "balance": vqkernels.Sinkhorn(iterations=3)},
        {
            **base,
            "regularizers": (vqkernels.Regularizer(name="entropy", loss=nn.LLAMAGEN_ENTROPY, weight=0.1),),
            "gradient": "none",
            "nested_keep_probs": [1.0],
            "nested_scope": "batch",
        },
    ]


def quantizer_input(module: Any, pick: Pick) -> Arguments:
    x = vectors(module.dim, pick, module.channels_first)
    return {"x": x, "mask": masked(x, 1 if module.channels_first else -1, pick)}


def labelled_input(module: Any, pick: Pick) -> Arguments:
    arguments = quantizer_input(module, pick)
    if not hasattr(module.table, "classes"):
        return arguments
    return {**arguments, "labels": pick(None, torch.randint(-1, 3, arguments["x"].shape[:-1]))}


def stack_input(module: Any, pick: Pick) -> Arguments:
    return quantizer_input(module.stages[0], pick)


def code_indices(module: Any, pick: Pick) -> Arguments:
    tail = () if module.groups == 1 else (module.groups,)
    return {"indices": torch.randint(-1, module.num_codes, (*pick((2, 3), (0,), ()), *tail))}


def stack_indices(module: Any, pick: Pick) -> Arguments:
    stage = module.stages[0]
    tail = () if stage.groups == 1 else (stage.groups,)
    return {"indices": torch.randint(-1, stage.num_codes, (2, 3, pick(1, len(module.stages)), *tail))}


def batches(module: Any, pick: Pick) -> Arguments:
    x = torch.randn(40, module.dim)
    x = x[..., None] if module.channels_first else x
    return {"batches": pick(x, [x, x]), "max_iter": 2, "seed": 0}


def stacked(**options: Any) -> Arguments:
    return {"num_stages": 3, "dim": 4, "num_codes": 6, **options}


def stages() -> list[vqkernels.VectorQuantizer]:
    return [vqkernels.VectorQuantizer(4, 6, gradient="none") for _ in range(2)]


def part(make: Callable[..., Any], *options: Arguments) -> Kind:
    return Kind(make, lambda: list(options))


NATIVE = {
    "Learned": part(vqkernels.Learned, {"init_scale": 0.1}),
    "Ema": part(vqkernels.Ema, {"decay": 0.9, "eps": 0.0, "dead_after": 3, "accumulate": 2}),
    "OnlineClustering": part(vqkernels.OnlineClustering, {"init_scale": None, "decay": 0.9, "anchor": "closest"}),
    "SemanticClustering": part(
        vqkernels.SemanticClustering,
        {"num_classes": 3, "levels": 2, "level_weights": (0.5, 0.1), "sigma": 0.5, "high_weight": 1.0},
    ),
    "Frozen": part(vqkernels.Frozen, {"features": torch.ones(6, 4), "projector": "linear", "hidden": 3}),
    "FullCodebook": part(vqkernels.FullCodebook, {"temperature": 1.0}),
    "Sinkhorn": part(vqkernels.Sinkhorn, {"epsilon": 0.1, "iterations": 5}),
    "Regularizer": part(vqkernels.Regularizer, {"name": "a", "loss": nn.SEQGAN_ENTROPY, "weight": 0.1}),
    "EntropyLoss": Kind(
        nn.EntropyLoss,
        lambda: [{"metric": "dot", "temperature": 0.1, "smoothing": "add", "eps": 1e-5, "base": 2.0}],
        {
            "__call__": lambda module, pick: {
                "x": torch.randn(5, 3),
                "codebook": torch.randn(4, 3),
                "weight": torch.rand(5),
            }
        },
    ),
    "VectorQuantizer": Kind(
        vqkernels.VectorQuantizer,
        quantizer_options,
        {
            "forward": labelled_input,
            "encode": quantizer_input,
            "decode": code_indices,
            "fit_codebook": batches,
            "usage": lambda module, pick: {},
        },
    ),
    "ResidualQuantizer": Kind(
        vqkernels.ResidualQuantizer,
        lambda: [{"stages": stages(), "gradient": "ste", "dropout": 0.5}],
    ),
    "ResidualQuantizer.build": Kind(
        vqkernels.ResidualQuantizer.build,
        lambda: [
            stacked(dropout=0.5),
            stacked(codebook=vqkernels.Ema(dead_after=2), code_dim=2),
            stacked(groups=2, channels_first=True, metric="cosine", gradient="rotation"),
        ],
        {"forward": stack_input, "encode": stack_input, "decode": stack_indices},
        further=("code_dim", "groups", "metric", "codebook", "channels_first", "usage_window"),
    ),
}
