"""The quantizer of diffusers: same name, signature, results and state dict.

``from vqkernels.compat.diffusers import VectorQuantizer`` replaces
``from diffusers.models.autoencoders.vae import VectorQuantizer``; :func:`vqkernels.replace_quantizers` puts it into a
model. Differences are intended and listed in ``vqkernels/compat/README.md``.
"""

from __future__ import annotations

import torch

from vqkernels.compat._embedding_quantizer import EmbeddingQuantizer

__all__ = ["VectorQuantizer"]


class VectorQuantizer(EmbeddingQuantizer):
    """``VectorQuantizer`` of diffusers: same arguments, results and state dict; no N x K matrix.

    Equivalent, with ``legacy=False``, to::

        indices = cdist(z, weight).argmin(-1)                       # z as rows
        z_q     = z + (weight[indices] - z).detach()
        loss    = beta * mse(z, weight[indices].detach()) + mse(z.detach(), weight[indices])

    Args:
        n_e: K.
        vq_embed_dim: size D of a code, and channels of the input.
        beta: weight of the encoder's term of the loss; with ``legacy`` of the codebook's.
        remap: path of an ``.npy`` file with the indices in use; others are renamed to positions in it.
        unknown_index: what an index not in use becomes: a number, ``"extra"`` or ``"random"``.
        sane_index_shape: indices ``[B, H, W]`` instead of ``[B * H * W]``.
        legacy: put ``beta`` on the other term.

    Numerics:
        The lookup is exact and the value is the code to the bit; losses are float32. A vector with a non-finite
        entry gets code 0 and takes no part in losses and gradients.

    Raises:
        ValueError: on an input that does not fit, or a ``remap`` that does not list codes.

    Example:
        >>> import torch
        >>> from vqkernels.compat.diffusers import VectorQuantizer
        >>> quantizer = VectorQuantizer(n_e=16, vq_embed_dim=4, beta=0.25, sane_index_shape=True)
        >>> z_q, loss, (perplexity, min_encodings, indices) = quantizer(torch.randn(2, 4, 3, 3))
        >>> list(z_q.shape), list(indices.shape)
        ([2, 4, 3, 3], [2, 3, 3])
        >>> torch.equal(quantizer.get_codebook_entry(indices, (2, 3, 3, 4)), z_q)
        True
    """

    def __init__(
        self,
        n_e: int,
        vq_embed_dim: int,
        beta: float,
        remap: str | None = None,
        unknown_index: str | int = "random",
        sane_index_shape: bool = False,
        legacy: bool = True,
    ) -> None:
        super().__init__(n_e, vq_embed_dim, beta, remap, unknown_index, sane_index_shape, legacy)
        self.vq_embed_dim = vq_embed_dim

    def forward(
        self,
        z: torch.Tensor,  # [B, D, H, W]
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[None, None, torch.Tensor]]:
        """``(z_q, loss, (None, None, indices))``: perplexity and one-hots are not computed, as in the original."""
        z_q, loss, indices = self.quantize_map(z)
        return z_q, loss, (None, None, indices)
