"""``SimVQ``: codes that are a trained map of frozen random ones, and all move together (Zhu et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from vqkernels._core.arguments import Size, checked
from vqkernels._core.checks import check_floating, check_size, check_state
from vqkernels._core.shown import shape_of
from vqkernels.compat._inputs import check_indices_of, given_vectors
from vqkernels.nn.rows import masked_mean_square, without_unusable
from vqkernels.nn.unsent import Unsent
from vqkernels.ops.gather_codes import gather_codes
from vqkernels.ops.nearest_code import nearest_code
from vqkernels.ops.quantize import estimate_gradient


class SimVQ(Unsent):
    """``SimVQ`` of vector-quantize-pytorch: same arguments, results and state dict; no N x K matrix.

    Args:
        dim: size of the vectors.
        codebook_size: K.
        codebook_transform: the map; None means a linear layer without bias.
        init_fn: makes the frozen codes out of normal ones.
        channel_first: vectors along dimension 1.
        rotation_trick: gradient for the input by rotation instead of straight-through.
        input_to_quantize_commit_loss_weight: of the pull of vectors to codes, beside that of codes to vectors.
        commitment_weight: of both.
        frozen_codebook_dim: size of the frozen codes; None means ``dim``.

    Numerics:
        As :class:`VectorQuantize`.

    Raises:
        ValueError: on an input that does not fit.

    Example:
        >>> import torch
        >>> from vqkernels.compat.vector_quantize_pytorch import SimVQ
        >>> quantized, indices, commit_loss = SimVQ(dim=8, codebook_size=32)(torch.randn(1, 16, 8))
        >>> list(quantized.shape), list(indices.shape)
        ([1, 16, 8], [1, 16])
    """

    frozen_codebook: torch.Tensor  # [K, F]

    @checked
    def __init__(
        self,
        dim: Size,
        codebook_size: Size,
        codebook_transform: nn.Module | None = None,
        init_fn: Callable[[torch.Tensor], torch.Tensor] = lambda codes: codes,
        channel_first: bool = False,
        rotation_trick: bool = True,
        input_to_quantize_commit_loss_weight: float = 0.25,
        commitment_weight: float = 1.0,
        frozen_codebook_dim: Size | None = None,
    ) -> None:
        super().__init__()
        width = dim if frozen_codebook_dim is None else frozen_codebook_dim
        check_size("codebook_size", codebook_size=codebook_size, frozen_codebook_dim=width)
        check_size("codebook_size", codebook_size=codebook_size, dim=dim)
        check_size("frozen_codebook_dim", dim=dim, frozen_codebook_dim=width)
        self.codebook_size, self.channel_first = codebook_size, channel_first
        frozen = init_fn(torch.randn(codebook_size, width) * width**-0.5)
        self.code_transform = nn.Linear(width, dim, bias=False) if codebook_transform is None else codebook_transform
        _check_codes("init_fn", frozen, codebook_size)
        self.set_unsent("frozen_codebook", frozen.detach())
        self.rotation_trick = rotation_trick
        self.input_to_quantize_commit_loss_weight = input_to_quantize_commit_loss_weight
        self.commitment_weight = commitment_weight

    @property
    def codebook(self) -> torch.Tensor:  # [K, D]
        codes: torch.Tensor = self.code_transform(self.frozen_codebook)
        _check_codes("codebook_transform", codes, self.codebook_size)
        return codes

    def indices_to_codes(self, indices: torch.Tensor) -> torch.Tensor:  # [B, ...] -> [B, ..., D] or [B, D, ...]
        check_indices_of("indices", indices, self.frozen_codebook, least=1)
        codes: torch.Tensor = self.code_transform(gather_codes(self.frozen_codebook, indices))
        return codes.movedim(-1, 1) if self.channel_first else codes

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``(quantized, indices, loss)`` of ``x [B, ..., dim]`` or ``[B, dim, ...]``."""
        check_floating("x", x)
        if self.training:
            self.send_once()
        dtype = x.dtype
        check_state(self.frozen_codebook)
        # once for lookup and values, so that they agree to the last bit
        codebook = self.codebook.float()
        x = given_vectors("x", x, codebook.shape[1], 1 if self.channel_first else -1, codebook, least=2)
        x, usable = without_unusable(x.movedim(1, -1) if self.channel_first else x)
        x = x.float()
        indices = nearest_code(x, codebook).indices.where(usable, 0)
        values = gather_codes(codebook, indices)
        rows = (-1, 1, x.shape[-1])
        commit_loss = masked_mean_square(x.detach().reshape(rows), values.reshape(rows), usable.reshape(-1))
        pull = masked_mean_square(x.reshape(rows), values.detach().reshape(rows), usable.reshape(-1))
        commit_loss = commit_loss + pull * self.input_to_quantize_commit_loss_weight
        quantized = estimate_gradient(x, values.detach(), "rotation" if self.rotation_trick else "ste").to(dtype)
        quantized = quantized.movedim(-1, 1) if self.channel_first else quantized
        return quantized, indices, commit_loss * self.commitment_weight


def _check_codes(name: str, codes: torch.Tensor, size: int) -> None:
    """Raise unless a function of the caller has made codes."""
    check_floating(name, codes)
    if codes.dim() != 2 or len(codes) != size:
        raise ValueError(f"{name}: expected codes [K={size}, D], got shape {shape_of(codes)}")
