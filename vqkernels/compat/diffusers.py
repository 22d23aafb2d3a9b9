"""The quantizer of diffusers: same name, signature, results and state dict.

``from vqkernels.compat.diffusers import VectorQuantizer`` replaces
``from diffusers.models.autoencoders.vae import VectorQuantizer``; :func:`vqkernels.replace_quantizers` puts it into a
model. Differences are intended and listed in ``vqkernels/compat/README.md``.
"""

from __future__ import annotations

from vqkernels._core.arguments import Size, checked
from vqkernels._core.checks import check_size
from vqkernels.compat._embedding_quantizer import EmbeddingQuantizer, Remap, UnknownIndex

__all__ = ["VectorQuantizer"]


class VectorQuantizer(EmbeddingQuantizer):
    """``VectorQuantizer`` of diffusers: same arguments, results and state dict; no N x K matrix.

    It is :class:`vqkernels.compat.taming.VectorQuantizer2`, whose documentation holds here, but for one name and for
    the arguments of Gumbel quantizers in ``forward``, which it does not take.

    Args:
        vq_embed_dim: there ``e_dim``: size D of a code, and channels of the input.
        n_e, beta, remap, unknown_index, sane_index_shape, legacy: as there.

    Example:
        >>> import torch
        >>> from vqkernels.compat.diffusers import VectorQuantizer
        >>> z_q, loss, (_, _, indices) = VectorQuantizer(n_e=16, vq_embed_dim=4, beta=0.25)(torch.randn(2, 4, 3, 3))
        >>> list(z_q.shape), list(indices.shape)
        ([2, 4, 3, 3], [18])
    """

    @checked
    def __init__(
        self,
        n_e: Size,
        vq_embed_dim: Size,
        beta: float,
        remap: Remap = None,
        unknown_index: UnknownIndex = "random",
        sane_index_shape: bool = False,
        legacy: bool = True,
    ) -> None:
        check_size("n_e", n_e=n_e, vq_embed_dim=vq_embed_dim)
        super().__init__(n_e, vq_embed_dim, beta, remap, unknown_index, sane_index_shape, legacy)
        self.vq_embed_dim = vq_embed_dim
