"""Beam search through the layers of a residual quantizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vqkernels.nn.rows import mean_or_zero

Layer = Callable[..., tuple[torch.Tensor, ...]]  # (number, residual, quantized, **options) -> value, index, loss
Steps = tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]


def beam_search(
    layer: Layer,
    start: torch.Tensor,  # [..., D]
    mask: torch.Tensor | None,  # [...] bool
    beam_size: int,
    weights: torch.Tensor,  # [Q]
    handed_on: Callable[[torch.Tensor], torch.Tensor],
    options: dict[str, Any],
) -> Steps:
    """Follow the ``beam_size`` sequences of codes of least weighted loss through all layers.

    Args:
        layer: quantizes beams ``[..., J, D]`` with the option ``topk``.
        start: what is quantized.
        mask: False leaves a vector out.
        beam_size: J.
        weights: of every layer's loss in the score.
        handed_on: a value as it is subtracted from the residual.
        options: of the layers.

    Returns:
        The sum of the codes of the best sequence, and by layer its indices, its loss, and what went in.
    """
    residual, quantized = start[..., None, :], torch.zeros_like(start)[..., None, :]
    score = start.new_zeros(residual.shape[:-1], dtype=torch.float32)
    columns: list[torch.Tensor] = []
    losses: list[torch.Tensor] = []
    residuals: list[torch.Tensor] = []
    for number, weight in enumerate(weights):
        beams = None if mask is None else mask[..., None].expand(score.shape)
        value, index, loss = layer(number, residual, quantized, mask=beams, topk=beam_size, **options)
        if loss.dim() == 0:
            # without a commitment loss, by the error that it would be
            loss = loss + (value.detach() - residual.detach()[..., None, :]).square().mean(dim=-1)
        successors = (score[..., None] - loss.detach() * weight).flatten(-2)
        most = 1 if number == len(weights) - 1 else beam_size
        score, chosen = successors.topk(min(most, successors.shape[-1]), dim=-1)
        parent = chosen // index.shape[-1]
        columns = [_beams(column, parent) for column in columns] + [_beams(index.flatten(-2), chosen)]
        losses = [_beams(past, parent) for past in losses] + [_beams(loss.flatten(-2), chosen)]
        residual, quantized, *residuals = (_vectors(past, parent) for past in (residual, quantized, *residuals))
        residuals.append(residual)
        value = _vectors(value.flatten(-3, -2), chosen)
        residual, quantized = residual - handed_on(value), quantized + value
    means = [_mean(loss[..., 0], mask) for loss in losses]
    return (
        quantized[..., 0, :],
        [column[..., 0] for column in columns],
        means,
        [past[..., 0, :] for past in residuals],
    )


def _beams(x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:  # [..., J], [..., j] -> [..., j]
    return x.gather(-1, chosen)


def _vectors(x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:  # [..., J, D], [..., j] -> [..., j, D]
    return x.gather(-2, chosen[..., None].expand(*chosen.shape, x.shape[-1]))


def _mean(loss: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:  # [...] -> []
    return mean_or_zero(loss) if mask is None else (loss * mask).sum() / mask.sum().clamp(min=1)
