"""Lookup-free quantization of what is left over, each layer at half the scale of the one before."""

from __future__ import annotations

from typing import Any

import torch

from vqkernels._core.arguments import Count, Integer, Magnitude, Size, checked
from vqkernels._core.checks import check_flag
from vqkernels.compat._inputs import check_indices_of, given_vectors
from vqkernels.compat.vector_quantize_pytorch._residual import DepthDropout, ResidualStack, SideBySide
from vqkernels.compat.vector_quantize_pytorch.lookup_free_quantization import LFQ, SignCodes

_MOST_LAYERS = 127  # 2^-126 is the least normal number of float32


class ResidualLFQ(ResidualStack):
    """Sum of codes of ``num_quantizers`` :class:`LFQ`; the codes of layer q are ``+-2 ** -q``.

    Args:
        dim: size of the vectors; linear layers lead from and to D.
        num_quantizers: Q, the number of layers.
        codebook_size: K = 2^D.
        quantize_dropout: in training, leave out the layers after a random one.
        quantize_dropout_cutoff_index: index of the first layer that can be the last to run.
        quantize_dropout_multiple_of: the number of layers that run is rounded up to a multiple of it.
        soft_clamp_input_value: of the first :class:`LFQ`; halved from layer to layer.
        **kwargs: further arguments of :class:`LFQ`.

    Numerics:
        Residuals are float32, or float64 for float64 ``x``, under any autocast.
        :meth:`get_output_from_indices` gives what :meth:`forward` gave, to the bit without projections and rotation.

    Raises:
        ValueError: on options that do not fit.

    Example:
        >>> import torch
        >>> from vqkernels.compat.vector_quantize_pytorch import ResidualLFQ
        >>> quantizer = ResidualLFQ(dim=256, codebook_size=256, num_quantizers=8).eval()
        >>> quantized, indices, losses = quantizer(torch.randn(1, 1024, 256))
        >>> quantized.shape, indices.shape, losses.shape
        (torch.Size([1, 1024, 256]), torch.Size([1, 1024, 8]), torch.Size([8]))
    """

    @checked
    def __init__(
        self,
        *,
        dim: Size,
        num_quantizers: Size,
        codebook_size: SignCodes,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: Count = 0,
        quantize_dropout_multiple_of: Size = 1,
        soft_clamp_input_value: Magnitude | None = None,
        **kwargs: Any,
    ) -> None:
        dropout = DepthDropout(
            num_quantizers, quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of
        )
        super().__init__(dim, codebook_size.bit_length() - 1, dropout)
        first = kwargs.pop("channel_first", None)
        self._channel_first = None if first is None else check_flag("channel_first", first)
        if num_quantizers > _MOST_LAYERS:
            raise ValueError(f"num_quantizers: expected at most {_MOST_LAYERS} halved scales, got {num_quantizers}")
        for number in range(num_quantizers):
            scale = 2.0**-number
            limit = None if soft_clamp_input_value is None else soft_clamp_input_value * scale
            layer = LFQ(
                codebook_size=codebook_size,
                codebook_scale=scale,
                soft_clamp_input_value=limit,
                channel_first=False,
                **kwargs,
            )
            if layer.num_codebooks > 1 or layer.has_projections:
                raise ValueError("kwargs: expected num_codebooks=1 and no projections in a residual stack")
            self.layers.append(layer)

    @property
    def codebooks(self) -> torch.Tensor:  # [Q, K, D]
        """Codes of all layers, neither on the sphere nor rotated; built when asked for."""
        return torch.stack([layer.codebook for layer in self.layers])

    def get_codes_from_indices(self, indices: torch.Tensor) -> torch.Tensor:  # [..., Q] -> [Q, ..., D]
        """Each layer's share of the output before it is projected; zero for index -1.

        With ``quantize_dropout`` the finest layers may be missing.
        """
        check_indices_of("indices", indices, self.layers[0].mask, least=1 + (self._channel_first is True))
        return self._decode(indices)

    def get_output_from_indices(
        self, indices: torch.Tensor
    ) -> torch.Tensor:  # [..., Q] -> [..., dim] or [B, dim, ...]
        """What :meth:`forward` gave with these indices."""
        out = self._output(self.get_codes_from_indices(indices))
        return out.movedim(-1, 1) if self._is_channel_first(indices) else out

    @checked
    def forward(
        self,
        x: torch.Tensor,  # [..., dim] or [B, dim, ...]
        mask: torch.Tensor | None = None,  # [...] or [B] bool
        return_all_codes: bool = False,
        rand_quantize_dropout_fixed_seed: Integer | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Quantize.

        Args:
            x: vectors, along dimension 1 where there are four or more dimensions unless ``channel_first`` says.
            mask: False leaves a vector, or with ``[B]`` an image or a sequence, out of the losses.
            return_all_codes: also return what :meth:`get_codes_from_indices` gives.
            rand_quantize_dropout_fixed_seed: decides the depth in place of a random number.

        Returns:
            ``(quantized, indices, losses)`` and the codes if asked for: like ``x``; ``[..., Q]``, -1 for layers left
            out; ``[Q]``.
        """
        channel_first = self._is_channel_first(x)
        x = given_vectors("x", x, self.dim, 1 if channel_first else -1, self.layers[0].mask)
        x = x.movedim(1, -1) if channel_first else x
        quantized, indices, losses = self._encode(x, mask, rand_quantize_dropout_fixed_seed)
        quantized = quantized.movedim(-1, 1) if channel_first else quantized
        if return_all_codes:
            return quantized, indices, losses, self.get_codes_from_indices(indices)
        return quantized, indices, losses

    def _is_channel_first(self, tensor: torch.Tensor) -> bool:
        return tensor.ndim >= 4 if self._channel_first is None else self._channel_first

    def _encode_layer(
        self, number: int, residual: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        code, indices, loss = self.layers[number](residual, mask=mask)
        return code, indices, loss

    def _decode_layer(self, number: int, indices: torch.Tensor) -> torch.Tensor:
        codes: torch.Tensor = self.layers[number].indices_to_codes(indices)
        return codes


class GroupedResidualLFQ(SideBySide):
    """A :class:`ResidualLFQ` for each of ``groups`` equal parts of the vectors.

    Args:
        dim: size of the vectors.
        groups: G, a divisor of ``dim``.
        accept_image_fmap: vectors along dimension 1, ``[B, dim, ...]``.
        **kwargs: arguments of :class:`ResidualLFQ`, except ``dim``.

    Raises:
        ValueError: on options that do not fit.

    Example:
        >>> import torch
        >>> from vqkernels.compat.vector_quantize_pytorch import GroupedResidualLFQ
        >>> quantizer = GroupedResidualLFQ(dim=8, groups=2, codebook_size=16, num_quantizers=3)
        >>> quantized, indices, losses = quantizer(torch.randn(4, 6, 8))
        >>> quantized.shape, indices.shape, losses.shape
        (torch.Size([4, 6, 8]), torch.Size([2, 4, 6, 3]), torch.Size([2, 3]))
    """

    @checked
    def __init__(self, *, dim: Size, groups: Size = 1, accept_image_fmap: bool = False, **kwargs: Any) -> None:
        super().__init__(dim, groups, accept_image_fmap)
        if accept_image_fmap:
            kwargs.setdefault("channel_first", True)
        self.rvqs.extend(ResidualLFQ(dim=dim // groups, **kwargs) for _ in range(groups))

    @checked
    def forward(
        self,
        x: torch.Tensor,  # [..., dim] or [B, dim, ...]
        mask: torch.Tensor | None = None,  # [...] or [B] bool
        return_all_codes: bool = False,
    ) -> tuple[Any, ...]:
        """Quantize: ``(quantized, indices [G, ..., Q], losses [G, Q])``, and each group's codes if asked."""
        quantized, indices, losses, *codes = self._outputs(x, mask=mask, return_all_codes=return_all_codes)
        return torch.cat(quantized, dim=self.split_dim), torch.stack(indices), torch.stack(losses), *codes
