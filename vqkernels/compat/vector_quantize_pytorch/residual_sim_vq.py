"""``ResidualSimVQ``: ``SimVQ`` after ``SimVQ``, each on what the ones before left."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vqkernels._core.arguments import Count, Integer, Size, checked
from vqkernels.compat._inputs import check_indices_of, given_vectors
from vqkernels.compat.vector_quantize_pytorch._residual import DepthDropout, DroppingStack, per_layer
from vqkernels.compat.vector_quantize_pytorch.sim_vq import SimVQ
from vqkernels.ops.gather_codes import gather_codes


class ResidualSimVQ(DroppingStack):
    """``ResidualSimVQ`` of vector-quantize-pytorch: same arguments, results and state dict.

    Args:
        dim, codebook_size: as in :class:`SimVQ`.
        num_quantizers: Q.
        heads: 1.
        quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of: as in :class:`ResidualVQ`.
        channel_first: vectors along dimension 1.
        rotation_trick: as in :class:`SimVQ`.
        **sim_vq_kwargs: of :class:`SimVQ`.

    Raises:
        ValueError: on arguments that do not fit.

    Example:
        >>> import torch
        >>> from vqkernels.compat.vector_quantize_pytorch import ResidualSimVQ
        >>> quantizer = ResidualSimVQ(dim=8, num_quantizers=4, codebook_size=32)
        >>> quantized, indices, losses = quantizer(torch.randn(1, 16, 8))
        >>> list(indices.shape), list(losses.shape)
        ([1, 16, 4], [4])
    """

    @checked
    def __init__(
        self,
        *,
        dim: Size,
        num_quantizers: Size,
        codebook_size: Size,
        heads: Size = 1,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: Count = 0,
        quantize_dropout_multiple_of: Size = 1,
        channel_first: bool = False,
        rotation_trick: bool = True,
        **sim_vq_kwargs: Any,
    ) -> None:
        super().__init__()
        if heads != 1:
            raise ValueError(f"heads: expected 1, got {heads}")
        self.channel_first, self.codebook_dim, self.codebook_size = channel_first, dim, codebook_size
        self.layers = nn.ModuleList(
            SimVQ(dim, codebook_size, rotation_trick=rotation_trick, channel_first=channel_first, **sim_vq_kwargs)
            for _ in range(num_quantizers)
        )
        cutoff, multiple_of = quantize_dropout_cutoff_index, quantize_dropout_multiple_of
        self._set_dropout(DepthDropout(num_quantizers, quantize_dropout, cutoff, multiple_of))

    @property
    def codebooks(self) -> torch.Tensor:  # [Q, K, D]
        return torch.stack([self._layer(number).codebook for number in range(self.num_quantizers)])

    def get_codes_from_indices(self, indices: torch.Tensor) -> torch.Tensor:  # [B, ..., q] -> [Q, B, ..., D]
        """The code of every quantizer, channels where the input has them; zeros for -1 and for those not given."""
        check_indices_of("indices", indices, self._layer(0).frozen_codebook, least=2)
        columns = self._dropout.of_all_layers(indices).unbind(-1)
        codes = torch.stack([gather_codes(book, i) for book, i in zip(self.codebooks, columns, strict=True)])
        return codes.movedim(-1, 2) if self.channel_first else codes

    def get_output_from_indices(self, indices: torch.Tensor) -> torch.Tensor:
        """Their sum."""
        return self.get_codes_from_indices(indices).sum(dim=0)

    @checked
    def forward(
        self,
        x: torch.Tensor,  # [B, ..., dim] or [B, dim, ...]
        return_all_codes: bool = False,
        rand_quantize_dropout_fixed_seed: Integer | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """``(quantized, indices [B, ..., Q], losses [Q])``, with ``return_all_codes`` the codes ``[Q, ...]`` too."""
        axis = 1 if self.channel_first else -1
        x = given_vectors("x", x, self.codebook_dim, axis, self._layer(0).frozen_codebook, least=2)
        if self.training:
            # all of them, for a process may drop the last ones where another does not
            for number in range(self.num_quantizers):
                self._layer(number).send_once()
        depth = self._depth(self.training and self.quantize_dropout, rand_quantize_dropout_fixed_seed, x.device)
        residual, quantized = x, torch.zeros_like(x)
        columns, losses = [], []
        for number in range(depth):
            value, index, loss = self._layer(number)(residual)
            residual, quantized = residual - value.detach(), quantized + value
            columns.append(index)
            losses.append(loss)
        indices, all_losses = per_layer(columns, losses, self.num_quantizers)
        result = (quantized, indices, all_losses)
        return (*result, self.get_codes_from_indices(indices)) if return_all_codes else result

    def _layer(self, number: int) -> SimVQ:
        layer = self.layers[number]
        assert isinstance(layer, SimVQ)
        return layer
