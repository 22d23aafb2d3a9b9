"""Quantizers with codebooks of every kind, and one quantization step in plain differentiable torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

import vqkernels
from vqkernels.nn import CodebookConfig
from vqkernels.testing import assert_within_budget


def _features(k: int) -> torch.Tensor:
    return torch.randn(k, 12, generator=torch.Generator().manual_seed(5))


# codebooks whose codes lie among standard normal vectors, by number of codes
KINDS: dict[str, Callable[[int], CodebookConfig]] = {
    "learned": lambda k: vqkernels.Learned(init_scale=1.0),
    "ema": lambda k: vqkernels.Ema(decay=0.8),
    "ema-revived": lambda k: vqkernels.Ema(decay=0.8, dead_after=2),
    "online-closest": lambda k: vqkernels.OnlineClustering(init_scale=1.0),
    "online-random": lambda k: vqkernels.OnlineClustering(init_scale=1.0, anchor="random"),
    "online-drawn": lambda k: vqkernels.OnlineClustering(init_scale=1.0, anchor="probabilistic"),
    "frozen": lambda k: vqkernels.Frozen(features=_features(k)),
    "matched": lambda k: vqkernels.Frozen(features=_features(k), projector_init="matched"),
}

# quantizers put together from several parts, each with draws of its own
COMPOSED: dict[str, Callable[..., torch.nn.Module]] = {
    "nested": lambda dim, k, **options: vqkernels.VectorQuantizer(
        dim, k, groups=2, codebook=vqkernels.Ema(decay=0.8, dead_after=2), nested_keep_probs=(0.5, 0.5), **options
    ),
    "sampled": lambda dim, k, **options: vqkernels.VectorQuantizer(
        dim, k, codebook=vqkernels.OnlineClustering(anchor="random"), sampling_temperature=1.0, **options
    ),
    "residual": lambda dim, k, **options: vqkernels.ResidualQuantizer.build(
        2, dim, k, codebook=vqkernels.Ema(decay=0.8, dead_after=2), dropout=0.5, **options
    ),
}


def compose(kind: str, dim: int = 8, num_codes: int = 32, **options: Any) -> Any:
    """Like :func:`make`, of one of the composed kinds too."""
    if kind in KINDS:
        return make(kind, dim, num_codes, **options)
    torch.manual_seed(7)
    return COMPOSED[kind](dim, num_codes, **options)


def make(kind: str, dim: int = 8, num_codes: int = 32, **options: Any) -> vqkernels.VectorQuantizer:
    """A quantizer of this kind, ready to train; the same arguments give the same bits."""
    torch.manual_seed(7)
    quantizer = vqkernels.VectorQuantizer(dim, num_codes, codebook=KINDS[kind](num_codes), **options)
    x = torch.randn(200, dim)
    x = x[..., None] if quantizer.channels_first else x
    if kind == "matched":
        quantizer.fit_codebook(x)
    elif kind.startswith("ema"):
        # the published start is a tiny ball around the origin
        quantizer.fit_codebook(x, max_iter=1)
    return quantizer


class Step(NamedTuple):
    quantized: torch.Tensor  # [N, G, D]
    commitment: torch.Tensor
    codebook: torch.Tensor


def dense_step(
    x: torch.Tensor,  # [N, G, D]
    codebook: torch.Tensor,  # [G, K, D]
    indices: torch.Tensor,  # [N, G]
    metric: str = "l2",
) -> Step:
    """Straight-through value and both losses, in the dtype of the arguments."""
    codes = torch.stack([book[index] for book, index in zip(codebook, indices.unbind(1), strict=True)], dim=1)
    if metric == "cosine":
        x, codes = F.normalize(x, dim=-1), F.normalize(codes, dim=-1)
    return Step(
        x + (codes - x).detach(),
        (x - codes.detach()).square().mean(),
        (x.detach() - codes).square().mean(),
    )


def assert_loss(
    actual: torch.Tensor,  # []
    x: torch.Tensor,  # [N, G, D] float32
    codebook: torch.Tensor,  # [G, K, D] float32
    indices: torch.Tensor,  # [N, G]
    term: str,
    metric: str = "l2",
) -> None:
    """Assert that a loss is as near to the float64 one as plain float32 sums of the batch, in several orders."""

    def loss(dtype: torch.dtype, order: torch.Tensor) -> torch.Tensor:
        step = dense_step(x[order].to(dtype), codebook.to(dtype), indices[order], metric)
        return getattr(step, term).detach()

    orders = [torch.randperm(len(x)) for _ in range(20)]
    truth = loss(torch.float64, orders[0]).expand(20)
    plain = torch.stack([loss(torch.float32, order) for order in orders])
    assert_within_budget(actual.detach().expand(20), truth, plain)


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same_state(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Assert that two states have the same names and bits."""
    assert actual.keys() == expected.keys()
    different = [name for name, tensor in expected.items() if not torch.equal(actual[name], tensor)]
    assert not different, f"state differs in {', '.join(different)}"
