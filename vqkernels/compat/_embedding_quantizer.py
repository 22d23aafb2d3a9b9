"""What the VQGAN family shares: codes in an ``nn.Embedding``, losses on both sides, renamed indices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from torch import nn

from vqkernels._core.arguments import OneOf, checked
from vqkernels._core.checks import check_index_values, is_integer
from vqkernels._core.shown import shown
from vqkernels.compat._feature_maps import entries, match
from vqkernels.compat._inputs import check_indices_of

Remap = str | os.PathLike[str] | None
UnknownIndex = Annotated[str, OneOf(("extra", "random"))] | int


class Renamed(nn.Module):
    """Indices of K codes as positions in a list of those that are in use.

    The buffer ``used`` holds the list. An index that is not in it becomes ``unknown_index``: a number, ``"extra"``
    for one past the list, or ``"random"`` for any position.
    """

    used: torch.Tensor  # [U] int64; None without remap

    def __init__(self, n_e: int, remap: Remap, unknown_index: UnknownIndex) -> None:
        super().__init__()
        self.n_e, self.remap, self.re_embed = n_e, remap, n_e
        self.register_buffer("used", None)
        if remap is None:
            return
        self.used = used = _load_used(remap, n_e)
        extra = unknown_index == "extra"
        self.re_embed = len(used) + extra
        self.unknown_index = len(used) if extra else unknown_index

    def remap_to_used(self, inds: torch.Tensor) -> torch.Tensor:  # [B, ...]
        """Positions in the list of codes in use."""
        self._check_renamed("inds", inds)
        check_index_values("inds", inds, self.n_e)
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
        return self._codes_at("inds", inds)

    def _codes_at(self, name: str, inds: torch.Tensor) -> torch.Tensor:
        self._check_renamed(name, inds)
        if self.re_embed > len(self.used):
            inds = inds.where(inds < len(self.used), 0)
        check_index_values(name, inds, len(self.used))
        return self.used.to(inds)[inds]

    def renamed_entries(
        self,
        codebook: torch.Tensor,  # [K, D]
        indices: torch.Tensor,  # [...]
        shape: Sequence[int] | None,
    ) -> torch.Tensor:
        """Codes by index: ``[B, D, ...]`` for a ``shape`` of ``(B, ..., D)``, ``[..., D]`` for None."""
        check_indices_of("indices", indices, codebook)
        if self.remap is not None:
            batched = indices if shape is None else indices.reshape(_batch_of(shape, indices), -1)
            indices = self._codes_at("indices", batched)
        return entries(codebook, indices, shape)

    def _check_renamed(self, name: str, inds: torch.Tensor) -> None:
        if self.remap is None:
            raise ValueError("remap: expected a file with the indices in use, got None in the constructor")
        check_indices_of(name, inds, self.used, least=2)


class OfEmbedding(Renamed):
    """A quantizer whose codes are the weight of an embedding."""

    embedding: Any  # with weight [K, D]

    @checked
    def get_codebook_entry(
        self,
        indices: torch.Tensor,  # [...] as forward returns them
        shape: Sequence[int] | None,
    ) -> torch.Tensor:
        """Codes by index: ``[B, D, H, W]`` for a ``shape`` of ``(B, H, W, D)``, ``[..., D]`` for None."""
        return self.renamed_entries(self.embedding.weight, indices, shape)


class EmbeddingQuantizer(OfEmbedding):
    """What is one quantizer in taming-transformers and in diffusers: see ``VectorQuantizer2``."""

    def __init__(
        self,
        n_e: int,
        dim: int,
        beta: float,
        remap: Remap,
        unknown_index: UnknownIndex,
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


def _load_used(remap: str | os.PathLike[str], n_e: int) -> torch.Tensor:  # [U]
    try:
        used = np.load(remap)
    except (OSError, ValueError, EOFError) as error:
        got = f"{shown(str(remap))} ({shown(str(error))})"
        raise ValueError(f"remap: expected the path of an .npy file, got {got}") from None
    if not isinstance(used, np.ndarray) or used.dtype.kind not in "iu" or used.ndim != 1 or not len(used):
        raise ValueError(f"remap: expected a list of indices, got another in {shown(str(remap))}")
    if used.min() < 0 or used.max() >= n_e:
        raise ValueError(f"remap: expected a list of indices in [0, {n_e}), got another in {shown(str(remap))}")
    return torch.from_numpy(np.ascontiguousarray(used, used.dtype.newbyteorder("=")))


def _batch_of(shape: Sequence[int], indices: torch.Tensor) -> int:
    if not shape or not is_integer(shape[0]) or shape[0] < 1 or indices.numel() % shape[0]:
        raise ValueError(f"shape: expected that of a map of {indices.numel()} indices, got {shown(shape)}")
    return shape[0]
