"""Finite scalar quantization of what is left over, at ever finer scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vqkernels._core.arguments import Count, Integer, Positive, Size, checked
from vqkernels._core.checks import LARGEST, SMALLEST, as_float, check_data, check_floating, is_number, is_within
from vqkernels._core.shown import shown
from vqkernels.compat._inputs import check_indices_of, given_vectors
from vqkernels.compat.vector_quantize_pytorch._residual import DepthDropout, ResidualStack, SideBySide
from vqkernels.compat.vector_quantize_pytorch._tensors import check_levels
from vqkernels.compat.vector_quantize_pytorch.finite_scalar_quantization import FSQ


class ResidualFSQ(ResidualStack):
    """Sum of codes of ``num_quantizers`` :class:`FSQ`; layer q works at scale ``levels ** -q``.

    Equivalent, in evaluation mode, to::

        residual = soft_clamp(project_in(x))
        for scale, layer in zip(scales, layers):
            code, index = layer(residual / scale)
            residual = residual - code * scale
        quantized = project_out(soft_clamp(project_in(x)) - residual)

    Args:
        levels: number of values of each entry; D numbers of at least 2.
        num_quantizers: Q, the number of layers.
        dim: size of the vectors; None means D. Linear layers lead from and to other sizes.
        is_channel_first: vectors along dimension 1, ``[B, dim, ...]``, and layers of the indices, ``[B, Q, ...]``.
        quantize_dropout: in training, leave out the layers after a random one.
        quantize_dropout_cutoff_index: index of the first layer that can be the last to run.
        quantize_dropout_multiple_of: the number of layers that run is rounded up to a multiple of it.
        soft_clamp_input_value: bound inputs smoothly to this magnitude; one number, or one for each entry. With
            ``bound_hard_clamp`` it is ``1 + 1 / (levels - 1)``, the range in which the first layer rounds.
        bound_hard_clamp: of :class:`FSQ`.
        **kwargs: further arguments of :class:`FSQ`.

    Numerics:
        Residuals are float32, or float64 for float64 ``x``, under any autocast.
        :meth:`get_output_from_indices` gives what :meth:`forward` gave, to the bit without noise and projections.

    Raises:
        ValueError: on options that do not fit.

    Example:
        >>> import torch
        >>> from vqkernels.compat.vector_quantize_pytorch import ResidualFSQ
        >>> quantizer = ResidualFSQ(dim=256, levels=[8, 5, 5, 3], num_quantizers=8).eval()
        >>> quantized, indices = quantizer(torch.randn(1, 1024, 256))
        >>> quantized.shape, indices.shape
        (torch.Size([1, 1024, 256]), torch.Size([1, 1024, 8]))
        >>> torch.allclose(quantizer.get_output_from_indices(indices), quantized, atol=1e-5)
        True
    """

    _given_clamp: torch.Tensor | None

    @checked
    def __init__(
        self,
        *,
        levels: Sequence[Size],
        num_quantizers: Size,
        dim: Size | None = None,
        is_channel_first: bool = False,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: Count = 0,
        quantize_dropout_multiple_of: Size = 1,
        soft_clamp_input_value: Positive | Sequence[Positive] | torch.Tensor | None = None,
        bound_hard_clamp: bool = True,
        **kwargs: Any,
    ) -> None:
        dropout = DepthDropout(
            num_quantizers, quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of
        )
        check_levels(levels)
        super().__init__(len(levels) if dim is None else dim, len(levels), dropout)
        if bound_hard_clamp and soft_clamp_input_value is not None:
            raise ValueError("soft_clamp_input_value: expected None with bound_hard_clamp, got a value")
        self.is_channel_first = is_channel_first
        self.levels = levels
        for _ in range(num_quantizers):
            layer = FSQ(levels, preserve_symmetry=True, bound_hard_clamp=bound_hard_clamp, **kwargs)
            if layer.effective_codebook_dim != len(levels) or not layer.return_indices:
                raise ValueError("kwargs: expected num_codebooks=1 and return_indices=True in a residual stack")
            self.layers.append(layer)
        self.codebook_size = layer.codebook_size
        self._bound_hard_clamp = bound_hard_clamp
        self._set_constant("_given_clamp", _limits(soft_clamp_input_value, len(levels)))

    # from integers whenever needed, so that a module moved to low precision does not round them

    @property
    def scales(self) -> torch.Tensor:  # [Q, D]
        """What codes of each layer are multiplied with."""
        return torch.stack([self._scale(number) for number in range(self.num_quantizers)])

    @property
    def soft_clamp_input_value(self) -> torch.Tensor | None:  # [] or [D]
        """The magnitude to which inputs are smoothly bounded."""
        return 1 + 1 / (self.layers[0]._levels - 1) if self._bound_hard_clamp else self._given_clamp

    @property
    def codebooks(self) -> torch.Tensor:  # [Q, K, D]
        """Codes of all layers, neither scaled nor rotated; built when asked for."""
        return torch.stack([layer.implicit_codebook for layer in self.layers])

    def get_codes_from_indices(self, indices: torch.Tensor) -> torch.Tensor:  # [..., Q] or [B, Q, ...]
        """Each layer's share of the output before it is projected, ``[Q, ..., D]``; zero for index -1.

        With ``quantize_dropout`` the finest layers may be missing.
        """
        check_indices_of("indices", indices, self.layers[0]._levels, least=1 + self.is_channel_first)
        return self._decode(indices.movedim(1, -1) if self.is_channel_first else indices)

    def get_output_from_indices(self, indices: torch.Tensor) -> torch.Tensor:  # -> [..., dim] or [B, dim, ...]
        """What :meth:`forward` gave with these indices."""
        out = self._output(self.get_codes_from_indices(indices))
        return out.movedim(-1, 1) if self.is_channel_first else out

    @checked
    def forward(
        self,
        x: torch.Tensor,  # [..., dim] or [B, dim, ...]
        return_all_codes: bool = False,
        rand_quantize_dropout_fixed_seed: Integer | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Quantize.

        Args:
            x: vectors.
            return_all_codes: also return what :meth:`get_codes_from_indices` gives.
            rand_quantize_dropout_fixed_seed: decides the depth in place of a random number.

        Returns:
            ``(quantized, indices)`` and the codes if asked for. ``quantized`` is like ``x``, ``indices`` like ``x``
            with Q in place of ``dim``, -1 for layers left out.
        """
        x = given_vectors("x", x, self.dim, 1 if self.is_channel_first else -1, self.layers[0]._levels)
        x = x.movedim(1, -1) if self.is_channel_first else x
        quantized, indices, _ = self._encode(x, None, rand_quantize_dropout_fixed_seed)
        if self.is_channel_first:
            quantized, indices = quantized.movedim(-1, 1), indices.movedim(-1, 1)
        if return_all_codes:
            return quantized, indices, self.get_codes_from_indices(indices)
        return quantized, indices

    def _bound(self, x: torch.Tensor) -> torch.Tensor:
        limit = self.soft_clamp_input_value
        return x if limit is None else (x / limit).tanh() * limit

    def _encode_layer(
        self, number: int, residual: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scale = self._scale(number)
        code, indices = self.layers[number](residual / scale)
        return code * scale, indices, residual.new_zeros(())

    def _decode_layer(self, number: int, indices: torch.Tensor) -> torch.Tensor:
        codes: torch.Tensor = self.layers[number].indices_to_codes(indices)
        return codes * self._scale(number)

    def _scale(self, number: int) -> torch.Tensor:  # [D]
        scale: torch.Tensor = self.layers[0]._levels.float() ** -number
        return scale


def _limits(
    given: float | Sequence[float] | torch.Tensor | None, dim: int
) -> float | Sequence[float] | torch.Tensor | None:
    name = "soft_clamp_input_value"
    if isinstance(given, torch.Tensor):
        check_floating(name, given)
        check_data(name, given)
    # not as a tensor: a module may be built without data
    values: Any = given.tolist() if isinstance(given, torch.Tensor) else given
    limits = list(values) if isinstance(values, Sequence) else [1.0 if values is None else values] * dim
    if len(limits) != dim or not all(is_number(limit) and is_within(limit, SMALLEST, LARGEST) for limit in limits):
        raise ValueError(f"{name}: expected a positive number, or one for each of {dim}, got {shown(given)}")
    if given is None or isinstance(given, torch.Tensor):
        return given
    return list(map(as_float, limits)) if isinstance(given, Sequence) else as_float(given)


class GroupedResidualFSQ(SideBySide):
    """A :class:`ResidualFSQ` for each of ``groups`` equal parts of the vectors.

    Args:
        dim: size of the vectors.
        groups: G, a divisor of ``dim``.
        accept_image_fmap: vectors along dimension 1, ``[B, dim, ...]``.
        **kwargs: arguments of :class:`ResidualFSQ`, except ``dim``.

    Raises:
        ValueError: on options that do not fit.

    Example:
        >>> import torch
        >>> from vqkernels.compat.vector_quantize_pytorch import GroupedResidualFSQ
        >>> quantizer = GroupedResidualFSQ(dim=8, groups=2, levels=[5, 5], num_quantizers=3)
        >>> quantized, indices = quantizer(torch.randn(4, 6, 8))
        >>> quantized.shape, indices.shape
        (torch.Size([4, 6, 8]), torch.Size([2, 4, 6, 3]))
    """

    @checked
    def __init__(self, *, dim: Size, groups: Size = 1, accept_image_fmap: bool = False, **kwargs: Any) -> None:
        super().__init__(dim, groups, accept_image_fmap)
        kwargs.setdefault("is_channel_first", accept_image_fmap)
        self.rvqs.extend(ResidualFSQ(dim=dim // groups, **kwargs) for _ in range(groups))
        self.codebook_size = self.rvqs[0].codebook_size

    @checked
    def forward(
        self,
        x: torch.Tensor,  # [..., dim] or [B, dim, ...]
        return_all_codes: bool = False,
    ) -> tuple[Any, ...]:
        """Quantize: ``(quantized, indices [G, ...])``, and a tuple of each group's codes if asked for."""
        quantized, indices, *codes = self._outputs(x, return_all_codes=return_all_codes)
        return torch.cat(quantized, dim=self.split_dim), torch.stack(indices), *codes
