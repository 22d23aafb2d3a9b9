"""The entropy regularizers of published tokenizers, as settings of :func:`vqkernels.soft_assignment_entropy`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch

from vqkernels._core.arguments import OneOf, Positive, Within, check_fields
from vqkernels._core.checks import LARGEST, check_floating, check_number, check_same_device, check_shape, check_weight
from vqkernels._core.devices import widest
from vqkernels._core.shown import shape_of
from vqkernels.ops.soft_assignment_entropy import METRICS, SMOOTHINGS, soft_assignment_entropy

_CERTAIN = 1e4  # beyond these log odds a bit is certain, in float64 too


@dataclass(frozen=True, kw_only=True)
class EntropyLoss:
    """``sample_weight * sample - usage_weight * usage``: sharp assignments that together use all codes.

    A call takes vectors and codes as :func:`vqkernels.soft_assignment_entropy` does, with its ``weight``, ``reduce``
    and ``backend``, and returns the loss, averaged over groups. The presets of this module reproduce the losses of
    their papers' code; ``dataclasses.replace`` changes one.

    Args:
        metric: as in :func:`vqkernels.soft_assignment_entropy`.
        temperature: a positive number.
        sample_weight: weight of the mean entropy of assignments.
        usage_weight: weight of the entropy of the mean assignment, which is maximised.
        smoothing: as in :func:`vqkernels.soft_assignment_entropy`.
        eps: as in :func:`vqkernels.soft_assignment_entropy`.
        base: of the logarithm, more than 1.

    Example:
        >>> import torch
        >>> from vqkernels.nn import LLAMAGEN_ENTROPY
        >>> x = torch.eye(4)
        >>> round(LLAMAGEN_ENTROPY(x, x.clone()).item(), 3)  # close to -log 4
        -1.386
    """

    metric: Annotated[str, OneOf(METRICS)] = "l2"
    temperature: Positive = 1.0
    sample_weight: float = 1.0
    usage_weight: float = 1.0
    smoothing: Annotated[str, OneOf(SMOOTHINGS)] = "none"
    eps: Annotated[float, Within(0, 1, without=(0, 1))] = 1e-5
    base: Annotated[float, Within(1, without=(1,))] = math.e

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self,
        x: torch.Tensor,  # [..., D] or [..., G, D]
        codebook: torch.Tensor,  # [K, D] or [G, K, D]
        *,
        weight: torch.Tensor | None = None,
        reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
        backend: str | None = None,
    ) -> torch.Tensor:
        sample, usage, _ = soft_assignment_entropy(
            x,
            codebook,
            metric=self.metric,
            temperature=self.temperature,
            weight=weight,
            smoothing=self.smoothing,
            eps=self.eps,
            reduce=reduce,
            backend=backend,
        )
        return (self.sample_weight * sample - self.usage_weight * usage).mean() / math.log(self.base)


# -H(mean assignment) on squared distances (Gu et al. 2022, SeQ-GAN); to be weighted with 0.01
SEQGAN_ENTROPY = EntropyLoss(sample_weight=0.0)
# squared distances at temperature 0.01, as in MaskGIT (Sun et al. 2024, LlamaGen)
LLAMAGEN_ENTROPY = EntropyLoss(temperature=0.01, smoothing="add")
# logits 2 x.c / 0.01 on sign codes (Yu et al. 2023, MAGVIT-v2; the code of Open-MAGVIT2)
MAGVIT2_ENTROPY = EntropyLoss(metric="dot", temperature=0.005, smoothing="add")
# logits 2 * 100 x.c on sign codes (the LFQ of vector-quantize-pytorch)
LFQ_ENTROPY = EntropyLoss(metric="dot", temperature=0.005, smoothing="clamp")
# logits x.c / 0.01 (Shi et al. 2024, IBQ)
IBQ_ENTROPY = EntropyLoss(metric="dot", temperature=0.01, smoothing="add")


class SignEntropy(NamedTuple):
    """Result of :func:`sign_entropy`."""

    sample: torch.Tensor  # [], mean entropy of the assignments, exact
    usage: torch.Tensor  # [], sum of the entropies of the mean bits: an upper bound of the entropy of the mean
    mean_bits: torch.Tensor  # [D], mean probability of +1, detached


def sign_entropy(
    x: torch.Tensor,  # [..., D]
    *,
    temperature: float = 1.0,
    scale: float = 1.0,
    weight: torch.Tensor | None = None,
) -> SignEntropy:
    """Entropies of soft assignments to the 2^D codes ``scale * (+-1, ..., +-1)``, in O(N D).

    The softmax of ``x.c / temperature`` over sign codes is a product of independent bits, ``P(c_d > 0) =
    sigmoid(2 scale x_d / temperature)``, whose entropies add up. Their mean over vectors is no product any more;
    ``usage`` takes it for one, as BSQ does (Zhao et al. 2024), which is exact where bits are independent over the
    batch and an upper bound elsewhere. The exact one, with all codes, is
    :func:`vqkernels.soft_assignment_entropy` with ``metric="dot"``.

    Args:
        x: vectors ``[..., D]``, floating point.
        temperature: a positive number; half of it for logits ``-|x - c|^2 / temperature``.
        scale: magnitude of the codes' entries, for BSQ ``D**-0.5``.
        weight: weight of each vector, at least 0, shaped like ``x`` without its last dimension; bool for a mask.

    Returns:
        ``SignEntropy(sample, usage, mean_bits)``: ``[], [], [D]``, natural logarithms, differentiable in ``x``.

    Raises:
        TypeError: if ``x`` is not floating point.
        ValueError: on a temperature or scale that is not positive.

    Example:
        >>> import torch
        >>> from vqkernels.nn import sign_entropy
        >>> sample, usage, mean_bits = sign_entropy(torch.tensor([[9.0, 9.0], [-9.0, 9.0]]))
        >>> round(usage.item(), 3), mean_bits.tolist()  # one bit in use: log 2
        (0.693, [0.5, 1.0])
    """
    check_floating("x", x)
    if x.dim() < 1 or x.shape[-1] < 1:
        raise ValueError(f"x: expected [..., D] with D >= 1, got shape {shape_of(x)}")
    temperature = check_number("temperature", temperature, 0, without=(0,))
    scale = check_number("scale", scale, 0, without=(0,))
    slope = 2 * scale / temperature
    if not slope <= LARGEST:
        raise ValueError(f"temperature: expected at least scale / 2^126 = {scale / 2.0**126:g}, got {temperature:g}")
    if weight is not None:
        check_weight("weight", weight)
        check_same_device(x=x, weight=weight)
        check_shape("weight", weight, tuple(x.shape[:-1]), "x.shape[:-1]")
    rows = x.reshape(-1, x.shape[-1])
    given = (torch.ones_like(rows[:, 0]) if weight is None else weight.detach().reshape(-1)).to(widest(x.device))
    counts = rows.detach().isfinite().all(1) & (given > 0) & given.isfinite()
    share = torch.where(counts, given, 0.0)
    share = torch.where(share.sum().isinf(), share * 2.0**-64, share)  # of float64
    share = (share / share.sum().clamp(min=torch.finfo(share.dtype).tiny)).to(x.dtype)
    logits = (torch.where(counts[:, None], rows, 0.0) * slope).clamp(-_CERTAIN, _CERTAIN)
    mean_bits = share @ logits.sigmoid()
    sample = share @ _bit_entropy(logits).sum(1)
    usage = _entropy(mean_bits) + _entropy(share @ (-logits).sigmoid())
    return SignEntropy(sample, usage, mean_bits.detach())


def _bit_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of bits with probability ``sigmoid(logits)``: ``log(1 + e^-|l|) + |l| sigmoid(-|l|)``."""
    size = logits.abs()
    return torch.nn.functional.softplus(-size) + size * (-size).sigmoid()


def _entropy(p: torch.Tensor) -> torch.Tensor:
    # finite slope at 0
    return -(p * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum()
