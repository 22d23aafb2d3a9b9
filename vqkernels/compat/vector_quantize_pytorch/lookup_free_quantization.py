"""Lookup-free quantization: the code of a vector is the sign of its entries (Yu et al. 2023)."""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from vqkernels._core.arguments import Magnitude, Size, Within, checked
from vqkernels._core.checks import check_floating, check_size
from vqkernels._core.devices import widest
from vqkernels._core.usable import LONGEST, usable_rows
from vqkernels.compat._inputs import check_dtype_of, check_indices_of, check_last, given_vectors
from vqkernels.compat.vector_quantize_pytorch._sign_codes import sign_code_entropy
from vqkernels.compat.vector_quantize_pytorch._tensors import (
    Constants,
    every_index,
    full_precision,
    keeps_codebook_dim,
    project,
    projection,
    random_rotation,
    spread_mask,
    straight_through,
    without_lost,
)

# probabilities below it count as this inside the logarithms of the entropies
_LEAST_PROBABILITY = 1e-5


_MOST_BITS = 63
SignCodes = Annotated[int, Within(2, 1 << _MOST_BITS)]


class Return(NamedTuple):
    """Result of :meth:`LFQ.forward`."""

    quantized: torch.Tensor  # like x
    indices: torch.Tensor  # [...] or [..., C] int64
    entropy_aux_loss: torch.Tensor  # []


class LossBreakdown(NamedTuple):
    """Unweighted terms of the loss of :class:`LFQ`."""

    per_sample_entropy: torch.Tensor  # []
    batch_entropy: torch.Tensor  # []
    commitment: torch.Tensor  # []


class CosineSimLinear(nn.Module):
    """Scaled cosines of vectors and the columns of a matrix."""

    def __init__(self, dim_in: int, dim_out: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.randn(dim_in, dim_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., dim_in] -> [..., dim_out]
        return F.normalize(x, dim=-1) @ F.normalize(self.weight, dim=0) * self.scale


class LFQ(Constants):
    """Replace each entry by ``codebook_scale`` with its sign; the index reads the signs as bits, first one highest.

    Equivalent, for the default arguments, to::

        code = torch.where(x > 0, 1.0, -1.0)                  # straight-through
        index = ((x > 0) * 2 ** torch.arange(D - 1, -1, -1)).sum(-1)
        p = softmax(2 * inv_temperature * x @ codebook.T)     # [N, K]
        loss = entropy_loss_weight * (H(p).mean() - diversity_gamma * H(p.mean(0)))

    without an N x K matrix or a codebook.

    Args:
        dim: size of the vectors; None means ``D * num_codebooks``.
        codebook_size: K = 2^D; None means ``2 ** dim``.
        entropy_loss_weight: weight of the entropy terms; at 0 they are computed for a loss breakdown only.
        commitment_loss_weight: weight of the mean squared distance to the code.
        diversity_gamma: weight of the entropy of the mean assignment against the mean entropy.
        straight_through_activation: applied to the input before it passes its gradient on.
        num_codebooks: parts of a vector that are quantized, and indexed, each by itself.
        keep_num_codebooks_dim: whether indices end in a dimension of codebooks; None means if there are several.
        codebook_scale: magnitude of the entries of codes; of the whole code if ``spherical``.
        frac_per_sample_entropy: share of the vectors, drawn at random, that the entropies are computed from.
        has_projections: whether linear layers lead from and to ``dim``; None means where sizes differ.
        projection_has_bias: of the linear layers.
        soft_clamp_input_value: bound inputs smoothly to this magnitude, at least ``codebook_scale``.
        cosine_sim_project_in: project in by cosines, see :class:`CosineSimLinear`.
        cosine_sim_project_in_scale: scale of the cosines; None means ``codebook_scale``.
        channel_first: vectors along dimension 1; None means for inputs of four or more dimensions.
        experimental_softplus_entropy_loss: make the entropy loss positive, ``softplus(loss + entropy_loss_offset)``.
        entropy_loss_offset: of the softplus.
        spherical: put inputs and codes on the sphere (BSQ, Zhao et al. 2024).
        force_quantization_f32: quantize in float32 without autocast.
        orthogonal_rotation: quantize in a random orthonormal basis.

    Numerics:
        Values are the codes to the bit; a vector with a non-finite entry gets that of index 0. Entropies are those of
        all K codes, with probabilities below 1e-5 taken as 1e-5 inside the logarithm, in O(N sqrt(K) + K) memory; the
        mean assignment is over all processes. A vector that is not finite, or longer than 2^62, takes no part in the
        loss.

    Raises:
        ValueError: on sizes or options that do not fit.

    Example:
        >>> import torch
        >>> from vqkernels.compat.vector_quantize_pytorch import LFQ
        >>> quantizer = LFQ(codebook_size=65536, dim=16)
        >>> quantized, indices, entropy_aux_loss = quantizer(torch.randn(1, 16, 32, 32))
        >>> quantized.shape, indices.shape, torch.equal(quantizer.indices_to_codes(indices), quantized)
        (torch.Size([1, 16, 32, 32]), torch.Size([1, 32, 32]), True)
    """

    mask: torch.Tensor
    zero: torch.Tensor
    orthogonal_rot: torch.Tensor | None

    @checked
    def __init__(
        self,
        *,
        dim: Size | None = None,
        codebook_size: SignCodes | None = None,
        entropy_loss_weight: float = 0.1,
        commitment_loss_weight: float = 0.0,
        diversity_gamma: float = 1.0,
        straight_through_activation: nn.Module | None = None,
        num_codebooks: Size = 1,
        keep_num_codebooks_dim: bool | None = None,
        codebook_scale: Magnitude = 1.0,
        frac_per_sample_entropy: Annotated[float, Within(0, 1, without=(0,))] = 1.0,
        has_projections: bool | None = None,
        projection_has_bias: bool = True,
        soft_clamp_input_value: Magnitude | None = None,
        cosine_sim_project_in: bool = False,
        cosine_sim_project_in_scale: float | None = None,
        channel_first: bool | None = None,
        experimental_softplus_entropy_loss: bool = False,
        entropy_loss_offset: float = 5.0,
        spherical: bool = False,
        force_quantization_f32: bool = True,
        orthogonal_rotation: bool = False,
    ) -> None:
        super().__init__()
        if dim is None and codebook_size is None:
            raise ValueError("dim: expected a number where codebook_size is None, got None")
        if codebook_size is None and dim is not None and dim > _MOST_BITS:
            raise ValueError(f"dim: expected at most {_MOST_BITS} where codebook_size is None, got {dim}")
        size = 2**dim if codebook_size is None and dim is not None else codebook_size
        if size is None or size < 2 or size & (size - 1):
            raise ValueError(f"codebook_size: expected a power of 2 of at least 2, got {size}")
        if soft_clamp_input_value is not None and soft_clamp_input_value < codebook_scale:
            raise ValueError(
                f"soft_clamp_input_value: expected at least codebook_scale={codebook_scale}, "
                f"got {soft_clamp_input_value}"
            )
        self.codebook_size = size
        self.codebook_dim = size.bit_length() - 1
        inner = self.codebook_dim * num_codebooks
        self.dim = inner if dim is None else dim
        self.num_codebooks = num_codebooks
        self.keep_num_codebooks_dim = keeps_codebook_dim(keep_num_codebooks_dim, num_codebooks)
        self.has_projections = self.dim != inner if has_projections is None else has_projections
        if not self.has_projections and self.dim != inner:
            raise ValueError(f"has_projections: expected True for dim={self.dim} and {inner} bits, got False")
        check_size("dim", dim=self.dim, bits=inner)
        self.channel_first = channel_first
        self.spherical = spherical
        self.orthogonal_rotation = orthogonal_rotation
        self.frac_per_sample_entropy = frac_per_sample_entropy
        self.diversity_gamma = diversity_gamma
        self.entropy_loss_weight = entropy_loss_weight
        self.codebook_scale = codebook_scale
        self.commitment_loss_weight = commitment_loss_weight
        self.soft_clamp_input_value = soft_clamp_input_value
        self.entropy_loss_offset = entropy_loss_offset
        self.experimental_softplus_entropy_loss = experimental_softplus_entropy_loss
        self.force_quantization_f32 = force_quantization_f32
        self.activation = nn.Identity() if straight_through_activation is None else straight_through_activation
        self.project_in: nn.Module
        if cosine_sim_project_in and self.has_projections:
            scale = codebook_scale if cosine_sim_project_in_scale is None else cosine_sim_project_in_scale
            self.project_in = CosineSimLinear(self.dim, inner, scale)
        else:
            self.project_in = projection(self.dim, inner, self.has_projections, projection_has_bias)
        self.project_out = projection(inner, self.dim, self.has_projections, projection_has_bias)
        self.register_buffer("orthogonal_rot", random_rotation(self.codebook_dim) if orthogonal_rotation else None)
        self.register_buffer("mask", 2 ** torch.arange(self.codebook_dim - 1, -1, -1))
        self._set_constant("zero", 0.0)

    @property
    def dtype(self) -> torch.dtype:
        return self.zero.dtype

    @property
    def codebook(self) -> torch.Tensor:  # [K, D]
        """All codes by index, neither on the sphere nor rotated; built when asked for."""
        codes = every_index("codebook_size", self.mask, codebook_size=self.codebook_size, dim=self.codebook_dim)
        return self.bits_to_codes(((codes[:, None] & self.mask) != 0).to(self.dtype))

    def bits_to_codes(self, bits: torch.Tensor) -> torch.Tensor:  # [..., D] of 0 and 1 -> [..., D]
        check_floating("bits", bits)
        return bits * self.codebook_scale * 2 - self.codebook_scale

    def maybe_l2norm(self, t: torch.Tensor) -> torch.Tensor:  # [..., D] -> [..., D]
        check_floating("t", t)
        return F.normalize(t, dim=-1) * self.codebook_scale if self.spherical else t

    @checked
    def indices_to_codes(
        self,
        indices: torch.Tensor,  # [...] or [..., C]
        project_out: bool = True,
    ) -> torch.Tensor:  # [..., dim] or [B, dim, ...]
        """Values of indices in the layout of the input they came from: the inverse of ``forward``.

        Args:
            indices: as returned by :meth:`forward`.
            project_out: False leaves out the projection to ``dim``.
        """
        least = (self.channel_first is True) + self.keep_num_codebooks_dim
        check_indices_of("indices", indices, self.mask, least=least)
        check_last(indices, self.num_codebooks, self.keep_num_codebooks_dim)
        is_image = indices.ndim >= 3 + int(self.keep_num_codebooks_dim)
        if not self.keep_num_codebooks_dim:
            indices = indices[..., None]
        codes = self._codes((indices[..., None] & self.mask) != 0, self.dtype)
        codes = self._rotate(codes, inward=False).flatten(-2)
        if project_out:
            codes = project(self.project_out, codes)
        return codes.movedim(-1, 1) if self._is_channel_first(is_image) else codes

    @checked
    def forward(
        self,
        x: torch.Tensor,  # [B, N, dim] or [B, dim, ...]
        inv_temperature: Annotated[float, Within(-LONGEST, LONGEST)] = 100.0,
        return_loss_breakdown: bool = False,
        mask: torch.Tensor | None = None,  # [B, N], [B, ...] or [B]
    ) -> Return | tuple[Return, LossBreakdown]:
        """Quantize; the loss is 0 in evaluation mode.

        Args:
            x: vectors, along dimension 1 where there are four or more dimensions unless ``channel_first`` says.
            inv_temperature: of the soft assignments of the entropies.
            return_loss_breakdown: also return the terms of the loss.
            mask: bool, False leaves a vector out of the loss; one entry for each vector, or for each image or
                sequence, ``[B]``.

        Returns:
            ``Return(quantized, indices, entropy_aux_loss)``, and ``LossBreakdown`` if asked for.

        Raises:
            ValueError: if the vectors are not of size ``dim``, the mask does not fit, or entropies are those of more
                codes than memory has addresses for, 2^45.
        """
        channel_first = self._is_channel_first(x.ndim >= 4)
        if self.has_projections:
            check_dtype_of("x", x, self.project_in)
        x = given_vectors("x", x, self.dim, 1 if channel_first else -1, self.zero)
        x = x.movedim(1, -1) if channel_first else x
        mask = None if mask is None else spread_mask(mask, x)
        x, finite = without_lost(x)
        x, still = without_lost(self.project_in(x))
        kept = finite & still
        part = kept & usable_rows(x)
        dtype = x.dtype
        with full_precision(x, self.force_quantization_f32):
            if self.force_quantization_f32:
                x = x.float()
            # what is lost gets the code of index 0
            x = self._normalize(x).where(kept[..., None, None], -1.0)
            codes = self._codes(x > 0, x.dtype)
            indices = ((x > 0) * self.mask).sum(dim=-1)
            part = part if mask is None else part & mask
            losses, loss = self._losses(x, codes, part, inv_temperature, return_loss_breakdown)
            out = straight_through(codes, self.activation(x)) if self.training else codes
            out = self._rotate(out, inward=False).flatten(-2).to(dtype)
        out = self.project_out(out)
        result = Return(
            out.movedim(-1, 1) if channel_first else out,
            indices if self.keep_num_codebooks_dim else indices.squeeze(-1),
            loss,
        )
        return (result, losses) if return_loss_breakdown else result

    def _is_channel_first(self, is_image: bool) -> bool:
        return is_image if self.channel_first is None else self.channel_first

    def _normalize(self, x: torch.Tensor) -> torch.Tensor:  # [..., C * D] -> [..., C, D]
        """What is compared with the codes: bounded, rotated, on the sphere, as the options say."""
        if self.soft_clamp_input_value is not None:
            x = (x / self.soft_clamp_input_value).tanh() * self.soft_clamp_input_value
        return self.maybe_l2norm(self._rotate(x.unflatten(-1, (self.num_codebooks, -1)), inward=True))

    def _rotate(self, codes: torch.Tensor, inward: bool) -> torch.Tensor:  # [..., D] -> [..., D]
        if self.orthogonal_rot is None:
            return codes
        rotation = self.orthogonal_rot.to(codes.dtype)
        return codes @ (rotation if inward else rotation.T)

    @property
    def _magnitude(self) -> float:
        """Of the entries of all codes."""
        return self.codebook_scale / math.sqrt(self.codebook_dim) if self.spherical else self.codebook_scale

    def _codes(self, positive: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:  # [..., D] bool -> [..., D]
        return torch.where(positive, self._magnitude, -self._magnitude).to(dtype)

    def _losses(
        self,
        x: torch.Tensor,  # [..., C, D]
        codes: torch.Tensor,  # [..., C, D]
        part: torch.Tensor,  # [...] bool
        inv_temperature: float,
        breakdown: bool,
    ) -> tuple[LossBreakdown, torch.Tensor]:
        """The terms of the loss, and the loss."""
        sample, usage, commitment = self.zero, self.zero, self.zero
        entropy_loss = self.zero
        if self.training:
            rows, codes = x.flatten(0, -3), codes.flatten(0, -3)
            valid = part.reshape(-1)
            rows = torch.where(valid[:, None, None], rows, codes)
            if self.commitment_loss_weight > 0:
                error = (rows - codes).square().mean((1, 2))
                commitment = (error * valid).sum() / valid.sum().clamp(min=1)
            if self.entropy_loss_weight != 0 or breakdown:
                rows, valid = self._sampled(rows, valid)
                # a bit's log odds: the logits 2 * inv_temperature * x.c of its two values, subtracted
                odds = 4 * inv_temperature * self._magnitude * rows
                sample, usage = sign_code_entropy(odds, valid.to(rows.dtype), eps=_LEAST_PROBABILITY)
                entropy_loss = sample - self.diversity_gamma * usage
            if self.experimental_softplus_entropy_loss:
                entropy_loss = F.softplus(entropy_loss + self.entropy_loss_offset)
        loss = entropy_loss * self.entropy_loss_weight + commitment * self.commitment_loss_weight
        return LossBreakdown(sample, usage, commitment), loss

    def _sampled(
        self,
        rows: torch.Tensor,  # [N, C, D]
        valid: torch.Tensor,  # [N] bool
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [M, C, D], [M] bool
        """A random share of the valid rows, at least one, padded to a size that does not depend on the mask."""
        if self.frac_per_sample_entropy == 1:
            return rows, valid
        most = max(1, int(len(rows) * self.frac_per_sample_entropy))
        order = (torch.rand(len(rows), device=rows.device) + ~valid).argsort()[:most]
        wanted = (valid.sum().to(widest(valid.device)) * self.frac_per_sample_entropy).floor().clamp(min=1)
        return rows[order], valid[order] & (torch.arange(len(order), device=rows.device) < wanted)
