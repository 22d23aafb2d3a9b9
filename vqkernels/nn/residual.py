"""Quantizers one after the other, each on what the ones before left."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Annotated, Any

import torch
from torch import nn

from vqkernels._core.arguments import OneOf, Share, Size, checked
from vqkernels._core.checks import check_indices, each_of
from vqkernels._core.devices import widest
from vqkernels._core.random import random_integers
from vqkernels._core.recomputation import Past
from vqkernels._core.shown import shape_of
from vqkernels.nn.codebook import next_seed
from vqkernels.nn.config import FullCodebook
from vqkernels.nn.output import QuantizerOutput
from vqkernels.nn.quantizer import VectorQuantizer
from vqkernels.nn.rows import kept_rows, without_unusable
from vqkernels.ops.quantize import GRADIENTS, estimate_gradient


class ResidualQuantizer(nn.Module):
    """Quantize in several steps: every stage quantizes what the stages before left (SoundStream; RQ-VAE).

    Equivalent, without dropout, to::

        for stage in stages:
            value, index, loss, _ = stage(residual.detach())   # the loss sees residual with its gradient
            residual, total = residual - value, total + value
        quantized = x + (total - x).detach()                   # one estimator for the sum

    Args:
        stages: one or more :class:`VectorQuantizer` of one ``dim`` and layout. An estimator of their own, which would
            give the input its gradient once per stage, is taken from them: their ``gradient`` becomes ``"none"``.
            :class:`FullCodebook` stays: through it the input gets a gradient of every stage.
        gradient: how the gradient of the sum reaches ``x``: ``"ste"``, ``"rotation"`` or ``"none"``.
        dropout: probability that a vector of a training step keeps only the first stages, their number drawn
            uniformly from ``1 .. Q - 1`` for every entry of the batch (Kumar et al. 2023); dropped stages give
            index -1, and learn nothing from that entry.

    State:
        That of the stages, and the counter of draws.

    Raises:
        ValueError: on stages that do not fit each other, or a dropout outside [0, 1].

    Example:
        >>> import torch, vqkernels
        >>> quantizer = vqkernels.ResidualQuantizer.build(4, 8, 32, codebook=vqkernels.Ema())
        >>> quantized, indices, loss, losses = quantizer(torch.randn(2, 5, 8))
        >>> list(indices.shape), sorted(losses)
        ([2, 5, 4], ['commitment'])
    """

    draws: torch.Tensor  # [] int64, the steps that drew

    @checked
    def __init__(
        self,
        stages: Iterable[VectorQuantizer],
        *,
        gradient: Annotated[str, OneOf(GRADIENTS)] = "ste",
        dropout: Share = 0.0,
    ) -> None:
        super().__init__()
        given = list(each_of("stages", stages))
        for stage in given:
            if not isinstance(stage, VectorQuantizer):
                raise TypeError(f"stages: expected VectorQuantizer, got {type(stage).__name__}")
        self.stages = nn.ModuleList(given)
        kinds = {(stage.dim, stage.channels_first, stage.groups) for stage in self._stages()}
        if len(kinds) != 1:
            raise ValueError(f"stages: expected one or more of one dim, layout and groups, got {len(kinds)} kinds")
        for stage in self._stages():
            if not isinstance(stage.gradient, FullCodebook):
                stage.gradient = "none"
        self.gradient, self.dropout = gradient, dropout
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        self._past = Past()

    @classmethod
    @checked
    def build(
        cls,
        num_stages: Size,
        dim: Size,
        num_codes: Size,
        *,
        gradient: Annotated[str, OneOf(GRADIENTS)] = "ste",
        dropout: Share = 0.0,
        **options: Any,
    ) -> ResidualQuantizer:
        """Equal stages.

        Args:
            num_stages: Q.
            dim: as in :class:`VectorQuantizer`.
            num_codes: as in :class:`VectorQuantizer`.
            gradient: as in :class:`ResidualQuantizer`.
            dropout: as in :class:`ResidualQuantizer`.
            **options: of :class:`VectorQuantizer`.
        """
        stages = (VectorQuantizer(dim, num_codes, gradient="none", **options) for _ in range(num_stages))
        return cls(stages, gradient=gradient, dropout=dropout)

    def forward(
        self,
        x: torch.Tensor,  # [..., dim] or [B, dim, ...]
        mask: torch.Tensor | None = None,  # [...] bool
    ) -> QuantizerOutput:
        """Quantize; in training mode also update codebooks and statistics.

        Args:
            x: as in :meth:`VectorQuantizer.forward`.
            mask: as in :meth:`VectorQuantizer.forward`.

        Returns:
            ``QuantizerOutput(quantized, indices, loss, losses)``: indices ``[..., Q]``, or ``[..., Q, G]`` for
            stages of several groups; losses summed over the stages.
        """
        # before the first stage has moved
        for stage in self._stages():
            stage.check_ready()
        self._stages()[0].check_input("x", x)
        if not self.training or self.dropout == 0:
            return self._step(x, mask, moves=False)
        return self._past.take(self._step, x, mask, state=[self.draws])

    def _step(self, x: torch.Tensor, mask: torch.Tensor | None, moves: bool) -> QuantizerOutput:
        rows, usable = without_unusable(x.movedim(self._dim, -1))
        x = rows.movedim(-1, self._dim)
        taking_part = kept_rows(usable, mask)
        depth = self._depth(usable.shape) if self.training and self.dropout > 0 else None
        steps = self._stages()[0].statistics.step.clone()
        residual, total = x, torch.zeros_like(x)
        results = []
        for number, stage in enumerate(self._stages()):
            kept = taking_part if depth is None else taking_part & (depth > number)
            # a vector that is not finite is 0 here: its index is that of a vector left out, and its value 0
            results.append(stage(residual, kept))
            value = results[-1].quantized
            # the gradient of a value is that of what makes it out of a code: project_out
            residual, total = residual - value.detach(), total + value
        # a batch of nothing is no step: the next one draws what it would have drawn
        if moves:
            self.draws.add_(self._stages()[0].statistics.step - steps)
        losses = {name: torch.stack([r.losses[name] for r in results]).sum() for name in results[0].losses}
        quantized = estimate_gradient(rows, total.movedim(self._dim, -1), self.gradient)
        quantized = torch.where(taking_part[..., None], quantized, 0).movedim(-1, self._dim)
        indices = torch.stack([r.indices for r in results], dim=self._stage_dim)
        return QuantizerOutput(quantized, indices, torch.stack([r.loss for r in results]).sum(), losses)

    @torch.no_grad()
    def encode(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:  # [..., Q] or [..., Q, G]
        """Indices as :meth:`forward` returns them in evaluation mode; updates nothing in any mode."""
        self._stages()[0].check_input("x", x)
        rows, usable = without_unusable(x.movedim(self._dim, -1))
        residual = rows.movedim(-1, self._dim)
        mask, columns = kept_rows(usable, mask), []
        for stage in self._stages():
            columns.append(stage.encode(residual, mask))
            residual = residual - stage.decode(columns[-1]).to(x.dtype)
        return torch.stack(columns, dim=self._stage_dim)

    @torch.no_grad()
    def fit_codebook(
        self, batches: torch.Tensor | Iterable[torch.Tensor], *, max_iter: int = 25, seed: int = 0
    ) -> None:
        """Start the codebooks over from data, one stage after the other: each is fitted to what is left by then.

        Args:
            batches: as in :meth:`VectorQuantizer.fit_codebook`.
            max_iter: as in :meth:`VectorQuantizer.fit_codebook`.
            seed: as in :meth:`VectorQuantizer.fit_codebook`.

        Raises:
            ValueError: as in :meth:`VectorQuantizer.fit_codebook`.
        """
        left = [batches] if isinstance(batches, torch.Tensor) else list(each_of("batches", batches))
        for stage in self._stages():
            stage.fit_codebook(left, max_iter=max_iter, seed=seed)
            left = [x - stage.decode(stage.encode(x)).to(x.dtype) for x in left]

    def decode(self, indices: torch.Tensor) -> torch.Tensor:  # [..., q] or [..., q, G]
        """The sum of the values of all stages, or of the first ``q``; -1 adds nothing.

        Args:
            indices: as returned by :meth:`forward` or :meth:`encode`.

        Raises:
            ValueError: with more columns than stages, or none.
        """
        check_indices("indices", indices)
        stages = self._stages()
        given = indices.shape[self._stage_dim] if indices.dim() >= -self._stage_dim else 0
        if not 1 <= given <= len(stages):
            raise ValueError(f"indices: expected 1 to {len(stages)} stages, got shape {shape_of(indices)}")
        columns = indices.unbind(self._stage_dim)
        values = [stage.decode(column) for stage, column in zip(stages, columns, strict=False)]
        # in the order of the forward, so that the bits are the same
        return functools.reduce(torch.add, values)

    def _depth(self, shape: torch.Size) -> torch.Tensor:  # [B, 1, ...] int64
        """How many stages every entry of the batch keeps."""
        count = len(self.stages)
        seed = next_seed(self.draws)
        chosen, keep = random_integers(seed, (2, *shape[:1]), self.draws.device).unbind(0)
        fewer = (keep.to(widest(keep.device)) * 2.0**-32 < self.dropout) & torch.tensor(count > 1, device=keep.device)
        depth = torch.where(fewer, 1 + chosen % max(1, count - 1), count)
        return depth.reshape(*shape[:1], *(1 for _ in shape[1:]))

    def _stages(self) -> list[VectorQuantizer]:
        return [stage for stage in self.stages if isinstance(stage, VectorQuantizer)]

    @property
    def _dim(self) -> int:
        return 1 if self._stages()[0].channels_first else -1

    @property
    def _stage_dim(self) -> int:
        return -1 if self._stages()[0].groups == 1 else -2
