"""What the VQGAN family shares: codes in an ``nn.Embedding``, losses on both sides, renamed indices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from vqkernels._core.checks import check_indices
from vqkernels.compat._feature_maps import entries, match


class Renamed(nn.Module):
    """Indices of K codes as positions in a list of those that are in use.

    The buffer ``used`` holds the list. An index that is not in it becomes ``unknown_index``: a number, ``"extra"``
    for one past the list, or ``"random"`` for any position.
    """

    used: torch.Tensor  # [U] int64; None without remap

    def __init__(self, n_e: int, remap: str | None, unknown_index: str | int) -> None:
        super().__init__()
        self.n_e, self.remap, self.re_embed = n_e, remap, n_e
        self.register_buffer("used", None)
        if remap is None:
            return
        used = torch.tensor(np.load(remap))
        if used.dim() != 1 or used.is_floating_point() or len(used) == 0 or used.min() < 0 or used.max() >= n_e:
            raise ValueError(f"remap: expected a list of indices in [0, {n_e}), got another in {remap!r}")
        self.used = used
        extra = unknown_index == "extra"
        self.re_embed = len(used) + extra
        self.unknown_index = len(used) if extra else unknown_index

    def remap_to_used(self, inds: torch.Tensor) -> torch.Tensor:  # [B, ...]
        """Positions in the list of codes in use."""
        _check_batched(inds)
        used = self.used.long()
        nowhere = len(used)
        # of a code listed twice, the first position
        position = torch.full((self.n_e,), nowhere, device=inds.device)
        position = position.scatter_reduce(0, used, torch.arange(nowhere, device=inds.device), "amin")
        new = position[inds]
        if self.unknown_index == "random":
            other = torch.randint(0, self.re_embed, new.shape, device=new.device)
        else:
            other = torch.full_like(new, int(self.unknown_index))
        return torch.where(new == nowhere, other, new)

    def unmap_to_all(self, inds: torch.Tensor) -> torch.Tensor:  # [B, ...]
        """The codes that positions stand for; the first in use for the extra one."""
        _check_batched(inds)
        if self.re_embed > len(self.used):
            inds = inds.where(inds < len(self.used), 0)
        return self.used.to(inds)[inds]

    def renamed_entries(
        self,
        codebook: torch.Tensor,  # [K, D]
        indices: torch.Tensor,  # [...]
        shape: Sequence[int] | None,
    ) -> torch.Tensor:
        """Codes by index: ``[B, D, ...]`` for a ``shape`` of ``(B, ..., D)``, ``[..., D]`` for None."""
        check_indices("indices", indices)
        if self.remap is not None:
            indices = self.unmap_to_all(indices if shape is None else indices.reshape(shape[0], -1))
        return entries(codebook, indices, shape)


class EmbeddingQuantizer(Renamed):
    """What is one quantizer in taming-transformers and in diffusers: see ``VectorQuantizer2``."""

    def __init__(
        self,
        n_e: int,
        dim: int,
        beta: float,
        remap: str | None,
        unknown_index: str | int,
        sane_index_shape: bool,
        legacy: bool,
    ) -> None:
        super().__init__(n_e, remap, unknown_index)
        self.beta, self.legacy, self.sane_index_shape = beta, legacy, sane_index_shape
        self.embedding = nn.Embedding(n_e, dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / n_e, 1.0 / n_e)

    def forward(
        self,
        z: torch.Tensor,  # [B, D, H, W]
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[None, None, torch.Tensor]]:
        """``(z_q, loss, (None, None, indices))``: perplexity and one-hots are not computed, as in the originals."""
        found = match(z, self.embedding.weight)
        encoder, codebook = found.encoder_loss, found.codebook_loss
        loss = encoder + self.beta * codebook if self.legacy else self.beta * encoder + codebook
        indices = found.indices.reshape(found.shape)
        if self.remap is not None:
            indices = self.remap_to_used(indices)
        flat = (-1,) if self.remap is None else (-1, 1)
        indices = indices.reshape(found.shape if self.sane_index_shape else flat)
        return found.quantized(), loss, (None, None, indices)

    def get_codebook_entry(
        self,
        indices: torch.Tensor,  # [...] as forward returns them
        shape: Sequence[int] | None,
    ) -> torch.Tensor:
        """Codes by index: ``[B, D, H, W]`` for a ``shape`` of ``(B, H, W, D)``, ``[..., D]`` for None."""
        return self.renamed_entries(self.embedding.weight, indices, shape)


def _check_batched(inds: torch.Tensor) -> None:
    if inds.dim() < 2:
        raise ValueError(f"inds: expected a batch of indices, [B, ...], got shape {list(inds.shape)}")
