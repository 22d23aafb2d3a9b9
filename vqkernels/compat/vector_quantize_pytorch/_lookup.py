"""How codes are found: nearest, several nearest, drawn; among fixed codes or codes made for every token."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from vqkernels._core.checks import check_floating
from vqkernels._core.shown import shape_of
from vqkernels.compat.vector_quantize_pytorch._rows import Rows
from vqkernels.nn.scores import sample_codes, soft_values
from vqkernels.ops.gather_codes import gather_codes
from vqkernels.ops.nearest_code import nearest_code
from vqkernels.ops.top_codes import top_codes

CodebookTransform = Callable[[torch.Tensor], torch.Tensor]  # [1, K, D] -> [1, ..., K, D]


class Found(NamedTuple):
    """Codes of all rows, and what was compared."""

    indices: torch.Tensor  # [N, H], or [N, H, M] for several
    values: torch.Tensor  # [N, H, D] or [N, H, M, D], with a gradient for codes that have one
    x: torch.Tensor  # [n, g, D]
    codes: torch.Tensor  # [g, K, D]

    def regrouped(self, indices: torch.Tensor) -> torch.Tensor:  # [N, H] -> [n, g]
        """Indices of rows in the layout of ``x``."""
        return indices.reshape(self.x.shape[:2])


def look_up(
    rows: Rows,
    codes: torch.Tensor,  # [H, K, D]
    metric: str,
    *,
    topk: int | None = None,
    sample: bool = False,
    soft: bool = False,
    temperature: float = 1.0,
    transform: CodebookTransform | None = None,
) -> Found:
    """Find codes.

    Args:
        rows: what is looked up.
        codes: among which.
        metric: ``"l2"`` or ``"dot"``.
        topk: M codes for each row, in order; None for one.
        sample: draw from ``softmax(scores / temperature)``, scores as :func:`score_metric` has them.
        soft: let the gradient of the values pass through that softmax.
        temperature: of both.
        transform: makes the codes of every token out of ``codes``; N x K x D by its nature.
    """
    x = rows.x
    # of no token there are no codes
    if transform is not None and x.shape[0]:
        # every token is a group with a codebook of its own
        x, codes = x.transpose(0, 1), _transformed(transform, codes, x.shape[0])
        codes = torch.nn.functional.normalize(codes, dim=-1, eps=1e-6) if metric == "dot" else codes
    if sample:
        seed = torch.randint(2**31, (), device=x.device)
        indices = sample_codes(x, codes, score_metric(metric), temperature, seed, topk or 1)
        indices = indices if topk else indices[..., 0]
    elif topk:
        indices = top_codes(x, codes, topk, metric=metric).indices
    else:
        indices = nearest_code(x, codes, metric=metric).indices
    # a row that is not usable has no nearest code: the first one, as in a lookup
    usable = rows.usable.reshape(x.shape[:2])
    indices = torch.where(usable[..., None] if topk else usable, indices, 0)
    columns = indices if topk else indices[..., None]
    values = torch.stack([gather_codes(codes, column) for column in columns.unbind(2)], dim=2)
    if soft:
        blurred = soft_values(x, codes, score_metric(metric), temperature)[:, :, None]
        values = values + (blurred - blurred.detach())
    values = values if topk else values[:, :, 0]
    shape = rows.x.shape[:2]
    return Found(indices.reshape(*shape, *indices.shape[2:]), values.reshape(*shape, *values.shape[2:]), x, codes)


def _transformed(transform: CodebookTransform, codes: torch.Tensor, tokens: int) -> torch.Tensor:  # [N, K, D]
    name, made = "codebook_transform_fn", transform(codes)
    check_floating(name, made)
    if made.dim() < 3 or made.shape[:-2].numel() != tokens or made.shape[-1] != codes.shape[-1]:
        expected = f"[..., K, D={codes.shape[-1]}] for each of {tokens} tokens"
        raise ValueError(f"{name}: expected {expected}, got shape {shape_of(made)}")
    return made.flatten(0, -3)


def score_metric(metric: str) -> str:
    """The metric of logits, the larger the nearer: distances are not squared."""
    return "euclidean" if metric == "l2" else metric
