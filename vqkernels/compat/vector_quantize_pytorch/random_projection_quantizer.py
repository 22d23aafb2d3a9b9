"""``RandomProjectionQuantizer``: labels for BEST-RQ (Chiu et al. 2022), nothing of which is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vqkernels.compat.vector_quantize_pytorch.vector_quantize_pytorch import VectorQuantize


class RandomProjectionQuantizer(nn.Module):
    """``RandomProjectionQuantizer`` of vector-quantize-pytorch: same arguments, results and state dict.

    Args:
        dim: size of the vectors.
        codebook_size: K.
        codebook_dim: size of the projected vectors.
        num_codebooks: H labels for each vector.
        norm: normalise vectors to mean 0 and variance 1 first.
        **kwargs: of :class:`VectorQuantize`.

    Example:
        >>> import torch
        >>> from vqkernels.compat.vector_quantize_pytorch import RandomProjectionQuantizer
        >>> labels = RandomProjectionQuantizer(dim=8, codebook_size=32, codebook_dim=4)(torch.randn(1, 16, 8))
        >>> list(labels.shape)
        [1, 16]
    """

    rand_projs: torch.Tensor  # [H, dim, D]

    def __init__(
        self,
        *,
        dim: int,
        codebook_size: int,
        codebook_dim: int,
        num_codebooks: int = 1,
        norm: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.num_codebooks = num_codebooks
        self.register_buffer("rand_projs", nn.init.xavier_normal_(torch.empty(num_codebooks, dim, codebook_dim)))
        self.norm = nn.LayerNorm(dim, elementwise_affine=False) if norm else nn.Identity()
        self.vq = VectorQuantize(
            dim=codebook_dim * num_codebooks,
            heads=num_codebooks,
            codebook_size=codebook_size,
            use_cosine_sim=True,
            separate_codebook_per_head=True,
            **kwargs,
        )

    def forward(
        self,
        x: torch.Tensor,  # [B, N, dim]
        indices: torch.Tensor | None = None,  # [B, N, H]
    ) -> torch.Tensor:
        """Labels ``[B, N, H]``, ``[B, N]`` for one codebook; with ``indices`` their cross entropy."""
        projected = torch.einsum("bnd,hde->bnhe", self.norm(x), self.rand_projs).flatten(2)
        self.vq.eval()
        _, *rest = self.vq(projected, indices=indices)
        answer: torch.Tensor = rest[0]
        return answer
