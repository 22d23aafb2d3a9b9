"""The losses of :class:`VectorQuantize`: which there are, and their sum."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vqkernels.compat.vector_quantize_pytorch._interface import QuantizerInterface
from vqkernels.compat.vector_quantize_pytorch._lookup import Found, score_metric
from vqkernels.compat.vector_quantize_pytorch._rows import Rows, orthogonal_loss_fn
from vqkernels.nn.rows import masked_mean_square
from vqkernels.nn.scores import cross_entropy, position_entropy


class LossBreakdown(NamedTuple):
    """The unweighted terms of the loss; 0 for those that are not asked for."""

    commitment: torch.Tensor  # [], or [..., M] with topk
    codebook_diversity: torch.Tensor  # []
    orthogonal_reg: torch.Tensor  # []
    inplace_optimize: torch.Tensor  # []


class QuantizerLosses(QuantizerInterface):
    """The part of :class:`VectorQuantize` that turns what was found into losses."""

    learnable_codebook: bool
    straight_through: bool
    directional_reparam: bool
    zero: torch.Tensor  # [] float32

    def _set_losses(
        self,
        *,
        commitment_weight: float,
        commitment_use_cross_entropy_loss: bool,
        orthogonal_reg_weight: float,
        orthogonal_reg_active_codes_only: bool,
        orthogonal_reg_max_codes: int | None,
        codebook_diversity_loss_weight: float,
        codebook_diversity_temperature: float,
    ) -> None:
        """Which losses there are. DiVeQ learns from the value itself."""
        self.commitment_weight = commitment_weight
        self.has_commitment_loss = commitment_weight > 0 and not self.directional_reparam
        self.commitment_use_cross_entropy_loss = commitment_use_cross_entropy_loss
        self.orthogonal_reg_weight = orthogonal_reg_weight
        self.has_codebook_orthogonal_loss = orthogonal_reg_weight > 0
        self.orthogonal_reg_active_codes_only = orthogonal_reg_active_codes_only
        self.orthogonal_reg_max_codes = orthogonal_reg_max_codes
        self.codebook_diversity_loss_weight = codebook_diversity_loss_weight
        self.has_codebook_diversity_loss = codebook_diversity_loss_weight > 0
        self.codebook_diversity_temperature = codebook_diversity_temperature

    def _scores_matter(self, indices: torch.Tensor | None) -> bool:
        """Whether this step has a loss on the scores of all codes."""
        commitment = self.has_commitment_loss and self.commitment_use_cross_entropy_loss
        return indices is not None or commitment or self.has_codebook_diversity_loss or self.straight_through

    def _losses(
        self, rows: Rows, found: Found, inplace_optimize: torch.Tensor, freeze: bool, topk: int | None
    ) -> tuple[torch.Tensor, LossBreakdown]:
        """The weighted sum, per token with topk, and its terms."""
        loss = commitment = diversity = orthogonal = self.zero
        if topk and not self.training:
            commitment = self._commitment(rows, found, freeze, topk)
            loss = commitment * (self.commitment_weight if self.has_commitment_loss else 1.0)
        if self.training and self.has_codebook_diversity_loss:
            diversity = -self._assignment_entropy(rows, found)
            loss = loss + diversity * self.codebook_diversity_loss_weight
        if self.training and self.has_commitment_loss:
            commitment = self._commitment(rows, found, freeze, topk)
            loss = loss + commitment * self.commitment_weight
        if self.training and self.has_codebook_orthogonal_loss:
            orthogonal = orthogonal_loss_fn(self._regularized_codes(rows.select(found.indices)))
            loss = loss + orthogonal * self.orthogonal_reg_weight
        if self.training and not loss.requires_grad and not torch.compiler.is_compiling():
            # a loss to call backward on, whatever it consists of
            loss = loss.detach().requires_grad_()
        return loss, LossBreakdown(commitment, diversity, orthogonal, inplace_optimize)

    def _commitment(self, rows: Rows, found: Found, freeze: bool, topk: int | None) -> torch.Tensor:
        values = found.values if self.learnable_codebook and not freeze else found.values.detach()
        if topk:
            error = (values - rows.x[:, :, None]).square().mean(dim=-1)
            return error.where(rows.usable[..., None], 0).reshape(*rows.shape, topk)
        if self.commitment_use_cross_entropy_loss:
            target = found.regrouped(rows.select(found.indices))
            return cross_entropy(found.x, found.codes, target, score_metric(self._codebook.metric))
        return masked_mean_square(values, rows.x, rows.usable)

    def _assignment_entropy(self, rows: Rows, found: Found) -> torch.Tensor:
        if found.x.shape != rows.x.shape:
            raise NotImplementedError("codebook_transform_fn: expected None with a codebook diversity loss, got one")
        tokens = rows.x.reshape(rows.shape[0], -1, self.heads, rows.x.shape[2])
        metric = score_metric(self._codebook.metric)
        return position_entropy(tokens, found.codes, metric, 1 / self.codebook_diversity_temperature, 1e-5)

    def _regularized_codes(self, indices: torch.Tensor) -> torch.Tensor:  # [N, H] -> [H, k, D]
        codes = self._codebook.embed
        if self.orthogonal_reg_active_codes_only:
            if len(codes) > 1:
                raise NotImplementedError(
                    "orthogonal_reg_active_codes_only: expected False with separate codebooks, got True"
                )
            codes = codes[:, indices[indices >= 0].unique()]
        most = self.orthogonal_reg_max_codes
        if most is not None and codes.shape[1] > most:
            codes = codes[:, torch.randperm(codes.shape[1], device=codes.device)[:most]]
        return codes
