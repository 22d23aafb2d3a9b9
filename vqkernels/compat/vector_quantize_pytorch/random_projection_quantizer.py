"""``RandomProjectionQuantizer``: labels for BEST-RQ (Chiu et al. 2022), nothing of which is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vqkernels._core.arguments import Size, checked
from vqkernels._core.checks import check_index_values, check_shape, check_size
from vqkernels._core.shown import shape_of
from vqkernels.compat._inputs import check_indices_of, given_vectors, meet
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

    @checked
    def __init__(
        self,
        *,
        dim: Size,
        codebook_size: Size,
        codebook_dim: Size,
        num_codebooks: Size = 1,
        norm: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        check_size("codebook_dim", num_codebooks=num_codebooks, dim=dim, codebook_dim=codebook_dim)
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

    @checked
    def forward(
        self,
        x: torch.Tensor,  # [B, N, dim]
        indices: torch.Tensor | None = None,  # [B, N, H]
    ) -> torch.Tensor:
        """Labels ``[B, N, H]``, ``[B, N]`` for one codebook; with ``indices`` their cross entropy."""
        x = given_vectors("x", x, self.rand_projs.shape[1], -1, self.rand_projs, least=3)
        if x.dim() != 3:
            raise ValueError(f"x: expected [B, N, dim], got shape {shape_of(x)}")
        if not meet(x, self.rand_projs):
            raise TypeError(f"x: expected {self.rand_projs.dtype} as the projection, got {x.dtype}")
        if indices is not None:
            check_indices_of("indices", indices, self.rand_projs)
            heads = () if self.num_codebooks == 1 else (self.num_codebooks,)
            check_shape("indices", indices, (*x.shape[:2], *heads), "[B, N, (H)]")
            check_index_values("indices", indices, self.vq.codebook_size)
        projected = torch.einsum("bnd,hde->bnhe", self.norm(x), self.rand_projs).flatten(2)
        self.vq.eval()
        _, *rest = self.vq(projected, indices=indices)
        answer: torch.Tensor = rest[0]
        return answer
