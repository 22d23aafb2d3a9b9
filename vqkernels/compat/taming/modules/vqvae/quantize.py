"""The quantizers of VQGAN (Esser et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from vqkernels._core.arguments import Size, checked
from vqkernels._core.checks import check_size
from vqkernels.compat._embedding_quantizer import EmbeddingQuantizer, Remap, UnknownIndex
from vqkernels.compat._feature_maps import OneHot, entries, match
from vqkernels.compat._inputs import check_indices_of
from vqkernels.compat.taming._ema import EMAVectorQuantizer, EmbeddingEMA
from vqkernels.compat.taming._gumbel import GumbelQuantize

__all__ = ["EMAVectorQuantizer", "EmbeddingEMA", "GumbelQuantize", "VectorQuantizer", "VectorQuantizer2"]


class VectorQuantizer(nn.Module):
    """``VectorQuantizer`` of taming-transformers: same arguments, results and state dict; no N x K matrix.

    Equivalent to::

        indices = cdist(z, weight).argmin(-1)                       # z as rows
        z_q     = z + (weight[indices] - z).detach()
        loss    = mse(z, weight[indices].detach()) + beta * mse(z.detach(), weight[indices])

    Args:
        n_e: K.
        e_dim: size D of a code, and channels of the input.
        beta: weight of the codebook's term of the loss.

    Numerics:
        As :class:`VectorQuantizer2`.

    Raises:
        ValueError: on an input that does not fit.

    Example:
        >>> import torch
        >>> from vqkernels.compat.taming import VectorQuantizer
        >>> z_q, loss, (perplexity, min_encodings, indices) = VectorQuantizer(16, 4, 0.25)(torch.randn(2, 4, 3, 3))
        >>> list(z_q.shape), list(indices.shape), list(min_encodings.to_dense().shape)
        ([2, 4, 3, 3], [18, 1], [18, 16])
    """

    @checked
    def __init__(self, n_e: Size, e_dim: Size, beta: float) -> None:
        super().__init__()
        check_size("n_e", n_e=n_e, e_dim=e_dim)
        self.n_e, self.e_dim, self.beta = n_e, e_dim, beta
        self.embedding = nn.Embedding(n_e, e_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / n_e, 1.0 / n_e)

    def forward(
        self,
        z: torch.Tensor,  # [B, D, H, W]
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, OneHot, torch.Tensor]]:
        """``(z_q, loss, (perplexity, min_encodings, indices [N, 1]))``, the one-hots not written out."""
        found = match(z, self.embedding.weight)
        loss = found.encoder_loss + self.beta * found.codebook_loss
        return found.quantized(), loss, (found.perplexity(self.n_e), found.one_hot(self.n_e), found.indices[:, None])

    @checked
    def get_codebook_entry(
        self,
        indices: torch.Tensor,  # [N] or [N, 1]
        shape: Sequence[int] | None,
    ) -> torch.Tensor:
        """Codes by index: ``[B, D, H, W]`` for a ``shape`` of ``(B, H, W, D)``, ``[N, D]`` for None."""
        check_indices_of("indices", indices, self.embedding.weight)
        return entries(self.embedding.weight, indices.reshape(-1), shape)


class VectorQuantizer2(EmbeddingQuantizer):
    """``VectorQuantizer2`` of taming-transformers: same arguments, results and state dict; no N x K matrix.

    Equivalent, with ``legacy=False``, to::

        indices = cdist(z, weight).argmin(-1)                       # z as rows
        z_q     = z + (weight[indices] - z).detach()
        loss    = beta * mse(z, weight[indices].detach()) + mse(z.detach(), weight[indices])

    Args:
        n_e: K.
        e_dim: size D of a code, and channels of the input.
        beta: weight of the encoder's term of the loss; with ``legacy`` of the codebook's.
        remap: path of an ``.npy`` file with the indices in use; others are renamed to positions in it.
        unknown_index: what an index not in use becomes: a number, ``"extra"`` or ``"random"``.
        sane_index_shape: indices ``[B, H, W]`` instead of ``[B * H * W]`` (``[B * H * W, 1]`` with ``remap``).
        legacy: put ``beta`` on the other term, as the first VQGANs were trained.

    Numerics:
        The lookup is exact and the value is the code to the bit; losses are at least float32. A vector with a
        non-finite entry gets code 0 and takes no part in losses and gradients.

    Raises:
        ValueError: on an input that does not fit, or a ``remap`` that does not list codes.

    Example:
        >>> import torch
        >>> from vqkernels.compat.taming import VectorQuantizer2
        >>> quantizer = VectorQuantizer2(n_e=16, e_dim=4, beta=0.25, sane_index_shape=True)
        >>> z_q, loss, (perplexity, min_encodings, indices) = quantizer(torch.randn(2, 4, 3, 3))
        >>> list(z_q.shape), list(indices.shape)
        ([2, 4, 3, 3], [2, 3, 3])
        >>> torch.equal(quantizer.get_codebook_entry(indices, (2, 3, 3, 4)), z_q)
        True
    """

    @checked
    def __init__(
        self,
        n_e: Size,
        e_dim: Size,
        beta: float,
        remap: Remap = None,
        unknown_index: UnknownIndex = "random",
        sane_index_shape: bool = False,
        legacy: bool = True,
    ) -> None:
        check_size("n_e", n_e=n_e, e_dim=e_dim)
        super().__init__(n_e, e_dim, beta, remap, unknown_index, sane_index_shape, legacy)
        self.e_dim = e_dim

    @checked
    def forward(
        self,
        z: torch.Tensor,  # [B, D, H, W]
        temp: float | None = None,
        rescale_logits: bool = False,
        return_logits: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[None, None, torch.Tensor]]:
        """``(z_q, loss, (None, None, indices))``; what a Gumbel quantizer takes has to be at its default."""
        for name, value, default in (
            ("temp", temp, (None, 1.0)),
            ("rescale_logits", rescale_logits, (False,)),
            ("return_logits", return_logits, (False,)),
        ):
            if value not in default:
                raise ValueError(f"{name}: expected {default[0]}, as there are no logits, got {value}")
        return super().forward(z)
