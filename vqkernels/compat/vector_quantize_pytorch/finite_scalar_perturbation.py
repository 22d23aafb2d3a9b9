"""Finite scalar perturbation: entries become probabilities, and those fall into bins or are jittered within them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from torch import nn

from vqkernels._core.arguments import OneOf, Share, Size, checked
from vqkernels._core.checks import check_size
from vqkernels._core.shown import shown
from vqkernels._core.usable import usable_rows
from vqkernels.compat._inputs import check_dtype_of, check_indices_of, given_vectors
from vqkernels.compat.vector_quantize_pytorch._tensors import (
    Constants,
    check_levels,
    digits_of,
    full_precision,
    indices_of,
    project,
    projection,
    radix_basis,
    straight_through,
    without_lost,
)
from vqkernels.nn.rows import mean_or_zero

Map = Callable[[torch.Tensor], torch.Tensor]

# of a uniform variable on [0, 1]
_UNIFORM_STD = math.sqrt(1 / 12)


def tanh_act(z: torch.Tensor) -> torch.Tensor:
    return (z.tanh() + 1) / 2


def tanh_inv_act(p: torch.Tensor) -> torch.Tensor:
    return (p * 2 - 1).atanh()


def sigmoid_act(z: torch.Tensor) -> torch.Tensor:
    return z.sigmoid()


def sigmoid_inv_act(p: torch.Tensor) -> torch.Tensor:
    return p.logit()


def normal_act(z: torch.Tensor) -> torch.Tensor:
    return (1 + (z / math.sqrt(2)).erf()) / 2


def normal_inv_act(p: torch.Tensor) -> torch.Tensor:
    return (2 * p - 1).erfinv() * math.sqrt(2)


def laplace_act(z: torch.Tensor) -> torch.Tensor:
    # one exponential on each side of 0, where |z| would have slope 0
    return torch.where(z < 0, z.clamp(max=0).exp() / 2, 1 - (-z.clamp(min=0)).exp() / 2)


def laplace_inv_act(p: torch.Tensor) -> torch.Tensor:
    return torch.where(p < 0.5, (2 * p.clamp(max=0.5)).log(), -(2 - 2 * p.clamp(min=0.5)).log())


def cauchy_act(z: torch.Tensor) -> torch.Tensor:
    return z.atan() / math.pi + 0.5


def cauchy_inv_act(p: torch.Tensor) -> torch.Tensor:
    return ((p - 0.5) * math.pi).tan()


# distribution -> its cumulative distribution function, and the inverse
_DISTRIBUTIONS: dict[str, tuple[Map, Map]] = {
    "tanh": (tanh_act, tanh_inv_act),
    "sigmoid": (sigmoid_act, sigmoid_inv_act),
    "normal": (normal_act, normal_inv_act),
    "laplace": (laplace_act, laplace_inv_act),
    "cauchy": (cauchy_act, cauchy_inv_act),
}


def build_cdf_act(act_name: str) -> tuple[Map, Map]:
    """Cumulative distribution function and its inverse, by name."""
    if act_name not in _DISTRIBUTIONS:
        raise ValueError(f"act_name: expected one of {', '.join(_DISTRIBUTIONS)}, got {act_name!r}")
    return _DISTRIBUTIONS[act_name]


def batch_stats(
    batch: torch.Tensor,  # [N, D]
    eps: float = 1e-8,
    part: torch.Tensor | None = None,  # [N] bool, those that take part
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # [D] each
    """Mean, unbiased variance (of a single vector: 0), skewness and excess kurtosis of each entry."""
    weight = torch.ones_like(batch[:, :1]) if part is None else part[:, None].to(batch.dtype)
    count = weight.sum().clamp(min=1)
    mean = (batch * weight).sum(dim=0) / count
    centred = (batch - mean) * weight
    variance = centred.square().sum(dim=0) / (count - 1).clamp(min=1)
    # bounded below before the root, whose slope at 0 is infinite
    scores = centred / variance.clamp(min=eps**2).sqrt()
    return mean, variance, scores.pow(3).sum(dim=0) / count, scores.pow(4).sum(dim=0) / count - 3


class VectorNorm(nn.Module):
    """Squared distances of the first four moments of a batch to targets, weighted and averaged over entries.

    Args:
        l1_target, l2_target, l3_target, l4_target: of mean, variance, skewness and excess kurtosis.
        l1_weight, l2_weight, l3_weight, l4_weight: weights.
        eps: least standard deviation by which entries are divided.
    """

    def __init__(
        self,
        l1_target: float = 0.0,
        l1_weight: float = 0.1,
        l2_target: float = 1.0,
        l2_weight: float = 0.07,
        l3_target: float = 0.0,
        l3_weight: float = 0.06,
        l4_target: float = 0.0,
        l4_weight: float = 0.05,
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        self.l1_target, self.l1_weight = l1_target, l1_weight
        self.l2_target, self.l2_weight = l2_target, l2_weight
        self.l3_target, self.l3_weight = l3_target, l3_weight
        self.l4_target, self.l4_weight = l4_target, l4_weight
        self.eps = eps

    def forward(
        self, z: torch.Tensor, part: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss and the moments of ``z [N, D]``, or of those that take part, ``[N]``."""
        moments = dict(zip(("mean", "variance", "skewness", "kurtosis"), batch_stats(z, self.eps, part), strict=True))
        targets = (self.l1_target, self.l2_target, self.l3_target, self.l4_target)
        weights = (self.l1_weight, self.l2_weight, self.l3_weight, self.l4_weight)
        loss = z.new_zeros(())
        for moment, target, weight in zip(moments.values(), targets, weights, strict=True):
            loss = loss + weight * (moment - target).square().mean()
        return loss, moments

    @classmethod
    def build(cls, name: str) -> VectorNorm:
        """A preset: ``none``, ``kurt`` (all moments), ``var``, or ``var_<distribution>`` with its variance."""
        if name == "kurt":
            return cls()
        if name == "none":
            return cls(l1_weight=0.0, l2_weight=0.0, l3_weight=0.0, l4_weight=0.0)
        variances = {"var": 1.0, "var_tanh": 0.8225, "var_sigmoid": 3.29, "var_laplace": 2.0}
        if name not in variances:
            raise ValueError(f"vector_norm: expected one of none, kurt, {', '.join(variances)}, got {shown(name)}")
        return cls(l2_target=variances[name], l3_weight=0.0, l4_weight=0.0)


class FSP(Constants):
    """Map each entry to [0, 1] and put it in the middle of one of ``levels[d]`` bins, or perturb it, in training.

    Equivalent, in evaluation mode and for the default arguments, to::

        p = (tanh(z) + 1) / 2
        level = (p * levels).floor()                          # straight-through
        quantized = ((level + 0.5) / levels - 0.5) / sqrt(1 / 12)

    Args:
        levels: number of bins of each entry; D numbers.
        dim: size of the vectors; None means D. Linear layers lead from and to other sizes.
        channel_first: vectors along dimension 1, ``[B, dim, ...]``.
        projection_has_bias: of the linear layers.
        act_name: the cumulative distribution function that maps to [0, 1]: ``"tanh"``, ``"sigmoid"``, ``"normal"``,
            ``"laplace"`` or ``"cauchy"``.
        quantize_rate: share of the entries that are quantized in training; the others move by up to half a bin.
        need_inv_act: map back by the inverse function instead of to unit variance.
        vector_norm: preset of :class:`VectorNorm`.

    Numerics:
        float16 and bfloat16 vectors are handled in float32, without autocast. :meth:`indices_to_codes` gives what
        :meth:`forward` gave in evaluation mode. Indices are int32, int64 from 2^31 codes on. A vector that is not
        finite becomes NaN, has index 0, and takes no part in the moments.

    Raises:
        ValueError: on levels or options that do not fit.

    Example:
        >>> import torch
        >>> from vqkernels.compat.vector_quantize_pytorch import FSP
        >>> quantizer = FSP(levels=[8, 5, 5, 5])
        >>> quantized, indices, norm_loss, info = quantizer(torch.randn(1, 1024, 4))
        >>> quantized.shape, indices.shape, sorted(info)
        (torch.Size([1, 1024, 4]), torch.Size([1, 1024]), ['level_indices', 'norm_info', 'p_accept_prob'])
    """

    _levels: torch.Tensor
    _basis: torch.Tensor | None

    @checked
    def __init__(
        self,
        levels: Sequence[Size],
        dim: Size | None = None,
        channel_first: bool = False,
        projection_has_bias: bool = True,
        act_name: Annotated[str, OneOf(tuple(_DISTRIBUTIONS))] = "tanh",
        quantize_rate: Share = 0.0,
        need_inv_act: bool = False,
        vector_norm: str = "var_tanh",
    ) -> None:
        super().__init__()
        levels = list(levels)
        check_levels(levels, least=1)
        self.codebook_dim = len(levels)
        self.codebook_size = math.prod(levels)
        self.dim = self.codebook_dim if dim is None else dim
        check_size("dim", dim=self.dim, codebook_dim=self.codebook_dim)
        self.channel_first = channel_first
        self._set_constant("_levels", levels, torch.int32)
        self._set_constant("_basis", radix_basis(levels))
        self.has_projections = self.dim != self.codebook_dim
        self.project_in = projection(self.dim, self.codebook_dim, self.has_projections, projection_has_bias)
        self.project_out = projection(self.codebook_dim, self.dim, self.has_projections, projection_has_bias)
        self.act_name = act_name
        self.act_func, self.inv_act_func = build_cdf_act(act_name)
        self.need_inv_act = need_inv_act
        self.quantize_rate = quantize_rate
        self.vector_norm = VectorNorm.build(vector_norm)

    def extra_repr(self) -> str:
        return (
            f"levels={self._levels.tolist()}, dim={self.dim}, act_name={self.act_name!r}, "
            f"need_inv_act={self.need_inv_act}, quantize_rate={self.quantize_rate}"
        )

    @checked
    def quantize_act_value(
        self,
        act_z: torch.Tensor,  # [..., D] in [0, 1]
        eps: Share,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [..., D], [..., D]
        """Middles of bins, straight-through, and the numbers of the bins."""
        act_z = given_vectors("act_z", act_z, self.codebook_dim, -1, self._levels)
        level = (act_z.detach().clamp(max=1 - eps) * self._levels).floor()
        return straight_through(self._middle(level), act_z), level

    def level_indices_to_indices(self, level_indices: torch.Tensor) -> torch.Tensor:  # [..., D] -> [...]
        given_vectors("level_indices", level_indices, self.codebook_dim, -1, self._levels)
        return indices_of(level_indices.nan_to_num(), self._basis)

    def indices_to_level_indices(self, indices: torch.Tensor) -> torch.Tensor:  # [...] -> [..., D]
        check_indices_of("indices", indices, self._levels, least=int(self.channel_first))
        return digits_of(indices, self._basis, self._levels)

    def indices_to_act_value(self, indices: torch.Tensor) -> torch.Tensor:  # [...] -> [..., D]
        """Middles of bins, in [0, 1]."""
        return self._middle(self.indices_to_level_indices(indices).float())

    @checked
    def indices_to_codes(
        self,
        indices: torch.Tensor,  # [...]
        eps: Share = 1e-6,
    ) -> torch.Tensor:  # [..., dim] or [B, dim, ...]
        """Values of indices; ``eps`` keeps the inverse function finite."""
        codes = project(self.project_out, self._values(self.indices_to_act_value(indices), eps))
        return codes.movedim(-1, 1) if self.channel_first else codes

    @checked
    def forward(
        self,
        z: torch.Tensor,  # [..., dim] or [B, dim, ...]
        eps: Share | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Quantize or perturb.

        Args:
            z: vectors.
            eps: distance that values in [0, 1] keep from 1; None means the precision of the dtype.

        Returns:
            ``(quantized, indices, norm_loss, info)``: like ``z``; ``[...]``; the loss of ``vector_norm``; a dict of
            ``level_indices [..., D]``, the moments as ``norm_info``, and in training ``p_accept_prob``, the share of
            perturbations that stayed in [0, 1].

        Raises:
            ValueError: if the vectors are not of size ``dim``.
        """
        if self.has_projections:
            check_dtype_of("z", z, self.project_in)
        z = given_vectors("z", z, self.dim, 1 if self.channel_first else -1, self._levels)
        z = z.movedim(1, -1) if self.channel_first else z
        shape = z.shape
        rows, finite = without_lost(z.reshape(-1, self.dim))
        z, still = without_lost(self.project_in(rows))
        kept = finite & still
        dtype = z.dtype
        info: dict[str, Any] = {}
        with full_precision(z):
            z = z.to(torch.promote_types(dtype, torch.float32))
            eps = eps or torch.finfo(z.dtype).eps
            norm_loss, info["norm_info"] = self.vector_norm(z, kept & usable_rows(z))
            act = self.act_func(z)
            quantized, level = self.quantize_act_value(act, eps)
            if self.training and self.quantize_rate < 1:
                quantized, info["p_accept_prob"] = self._perturbed(act, quantized)
            out = self._values(quantized, eps)
            if self.need_inv_act:
                out = straight_through(out, z)
        out = self.project_out(out.to(dtype)).where(kept[:, None], torch.nan).reshape(shape)
        level = level.where(kept[:, None], 0)
        info["level_indices"] = level.reshape(*shape[:-1], self.codebook_dim)
        indices = self.level_indices_to_indices(level).reshape(shape[:-1])
        return out.movedim(-1, 1) if self.channel_first else out, indices, norm_loss, info

    def _perturbed(
        self,
        act: torch.Tensor,  # [N, D]
        quantized: torch.Tensor,  # [N, D]
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [N, D], []
        """The quantized share of the entries, the others moved by up to half a bin, and how many could move."""
        proposal = act + (torch.rand_like(act) * 2 - 1) / (2 * self._levels)
        accepted = (proposal > 0) & (proposal < 1)
        jittered = torch.where(accepted, proposal, act)
        keep = torch.rand_like(act) > self.quantize_rate
        return torch.where(keep, jittered, quantized), mean_or_zero(accepted.float())

    def _middle(self, level: torch.Tensor) -> torch.Tensor:  # [..., D] -> [..., D]
        return (level + 0.5) / self._levels

    def _values(self, act: torch.Tensor, eps: float) -> torch.Tensor:  # [..., D] in [0, 1] -> [..., D]
        if self.need_inv_act:
            return self.inv_act_func(act.clamp(eps, 1 - eps))
        return (act - 0.5) / _UNIFORM_STD
