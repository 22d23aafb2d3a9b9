"""Vectors of a feature map beside their nearest codes: what the quantizers of image tokenizers begin with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from vqkernels.compat._inputs import check_map_shape, given_vectors
from vqkernels.nn.codebook import unit
from vqkernels.nn.rows import masked_mean_square, without_unusable
from vqkernels.ops.gather_codes import gather_codes
from vqkernels.ops.nearest_code import nearest_code
from vqkernels.ops.quantize import estimate_gradient


class OneHot(NamedTuple):
    """One-hot rows that are not written out: N x K numbers in N."""

    indices: torch.Tensor  # [N] int64
    num_codes: int  # K
    dtype: torch.dtype

    def to_dense(self) -> torch.Tensor:  # [N, K]
        return torch.nn.functional.one_hot(self.indices, self.num_codes).to(self.dtype)


class Match(NamedTuple):
    """The N vectors of a map and their codes, both at least float32 and with gradient."""

    rows: torch.Tensor  # [N, D], zero where not finite
    codes: torch.Tensor  # [N, D]
    indices: torch.Tensor  # [N] int64, 0 where not finite
    usable: torch.Tensor  # [N] bool, finite
    shape: torch.Size  # [B, ...] of the map without its channels
    dtype: torch.dtype  # of the result

    @property
    def labels(self) -> torch.Tensor:  # [N] int64
        """Indices, and -1 for a vector that takes no part."""
        return self.indices.where(self.usable, -1)

    @property
    def encoder_loss(self) -> torch.Tensor:  # []
        """Mean squared difference, with gradient to the vectors."""
        return masked_mean_square(self.rows[:, None], self.codes[:, None].detach(), self.usable)

    @property
    def codebook_loss(self) -> torch.Tensor:  # []
        """Mean squared difference, with gradient to the codes."""
        return masked_mean_square(self.rows[:, None].detach(), self.codes[:, None], self.usable)

    def quantized(self) -> torch.Tensor:  # [B, D, ...]
        """The codes as a map, straight through."""
        return as_map(estimate_gradient(self.rows, self.codes.detach()).to(self.dtype), self.shape)

    def perplexity(self, num_codes: int) -> torch.Tensor:  # []
        """Exponential of the entropy of how often each code was taken; 1 if none was."""
        taken = self.indices.where(self.usable, num_codes)
        count = taken.new_zeros(num_codes + 1).scatter_add(0, taken, torch.ones_like(taken))[:-1].to(self.rows.dtype)
        share = count / count.sum().clamp(min=1)
        # ONNX's optimizer takes 1e-10 for nothing: no logarithm of zero without it either
        return torch.exp(-(share * (share.where(share > 0, 1) + 1e-10).log()).sum())

    def one_hot(self, num_codes: int) -> OneHot:
        return OneHot(self.indices, num_codes, self.dtype)


def match(
    z: torch.Tensor,  # [B, D, ...]
    codebook: torch.Tensor,  # [K, D]
    *,
    metric: str = "l2",
    normalize: bool = False,
) -> Match:
    """Find the nearest code of every vector of a map; with ``normalize``, of the vector scaled to unit length."""
    rows, usable, shape = map_rows(z, codebook)
    dtype = torch.promote_types(z.dtype, codebook.dtype)
    rows = rows.to(torch.promote_types(dtype, torch.float32))
    if normalize:
        rows = unit(rows)
    # a vector that is not finite has no nearest code: the first one, as in a lookup
    indices = nearest_code(rows, codebook, metric=metric).indices.where(usable, 0)
    codes = gather_codes(codebook, indices).to(rows.dtype)
    return Match(rows, codes, indices, usable, shape, dtype)


def map_rows(
    z: torch.Tensor,  # [B, D, ...]
    like: torch.Tensor,  # [K, D, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Size]:  # [N, D], [N] bool
    """The vectors of a map, with as many channels as ``like``, which are finite, the map's shape without channels."""
    dim = like.shape[1]
    x = given_vectors("z", z, dim, 1, like).movedim(1, -1)
    return *without_unusable(x.reshape(-1, dim)), x.shape[:-1]


def as_map(rows: torch.Tensor, shape: torch.Size) -> torch.Tensor:  # [N, D] -> [B, D, ...]
    """The inverse of :func:`map_rows`."""
    return rows.reshape(*shape, rows.shape[1]).movedim(-1, 1).contiguous()


def entries(
    codebook: torch.Tensor,  # [K, D]
    indices: torch.Tensor,  # [...]
    shape: Sequence[int] | None,
) -> torch.Tensor:  # [..., D] or [B, D, ...]
    """Codes by index, as they come, or as the map whose channels-last ``shape`` is given."""
    codes = gather_codes(codebook, indices)
    if shape is None:
        return codes
    return codes.reshape(check_map_shape(shape, codes)).movedim(-1, 1).contiguous()
