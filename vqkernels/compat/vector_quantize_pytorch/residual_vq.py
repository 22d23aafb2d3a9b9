"""``ResidualVQ`` and ``GroupedResidualVQ``: quantizers one after the other, each on what the ones before left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from vqkernels._core.arguments import Count, Integer, Size, checked
from vqkernels._core.checks import check_flag, check_size
from vqkernels.compat._inputs import check_dtype_of, check_indices_of, given_mask, given_vectors
from vqkernels.compat.vector_quantize_pytorch._beam import Steps, beam_search
from vqkernels.compat.vector_quantize_pytorch._mlp import MLP as MLP
from vqkernels.compat.vector_quantize_pytorch._residual import (
    DepthDropout,
    DroppingStack,
    of_groups,
    of_layers,
    per_layer,
    shared_seed,
)
from vqkernels.compat.vector_quantize_pytorch._rows import directional_reparam
from vqkernels.compat.vector_quantize_pytorch._tensors import project
from vqkernels.compat.vector_quantize_pytorch.vector_quantize_pytorch import VectorQuantize
from vqkernels.nn.rows import without_unusable
from vqkernels.ops.gather_codes import gather_codes


class ResidualVQ(DroppingStack):
    """``ResidualVQ`` of vector-quantize-pytorch: quantizers, each on what the ones before left.

    Equivalent to::

        for layer in layers:
            value, index, loss = layer(residual)
            residual, quantized = residual - value.detach(), quantized + value

    Args:
        dim, codebook_dim: as in :class:`VectorQuantize`; one projection for all layers.
        num_quantizers: Q; None takes it from a tuple of sizes.
        codebook_size: K, or one for each layer.
        shared_codebook: one codebook for all layers, moved once a step.
        diveq: learn the codes through DiVeQ on the sum.
        heads: 1.
        quantize_dropout: in training, keep only the first layers, as many as a draw says; index -1 and loss 0 for
            the others.
        quantize_dropout_cutoff_index: at least one more than this is kept.
        quantize_dropout_multiple_of: numbers of layers kept.
        accept_image_fmap: vectors along dimension 1.
        implicit_neural_codebook, mlp_kwargs: codes made from what was quantized so far (QINCo); N x K x D numbers.
        beam_size, eval_beam_size: sequences of codes followed in training, and in evaluation.
        beam_score_quantizer_weights: of each layer's loss in their score.
        quant_grad_frac: share of a value's gradient that the next layer's input passes on.
        return_zeros_for_masked_padding: at masked positions, or what came in.
        **vq_kwargs: of :class:`VectorQuantize`.

    Raises:
        ValueError: on arguments that do not fit.

    Example:
        >>> import torch
        >>> from vqkernels.compat.vector_quantize_pytorch import ResidualVQ
        >>> quantizer = ResidualVQ(dim=8, num_quantizers=4, codebook_size=32)
        >>> quantized, indices, losses = quantizer(torch.randn(1, 16, 8))
        >>> list(indices.shape), list(losses.shape)
        ([1, 16, 4], [4])
    """

    layers: nn.ModuleList
    beam_score_weights: torch.Tensor  # [Q]
    project_in: Callable[[torch.Tensor], torch.Tensor]
    project_out: Callable[[torch.Tensor], torch.Tensor]

    @checked
    def __init__(
        self,
        *,
        dim: Size,
        num_quantizers: Size | None = None,
        codebook_size: Size | tuple[Size, ...],
        codebook_dim: Size | None = None,
        shared_codebook: bool = False,
        diveq: bool = False,
        heads: Size = 1,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: Count = 0,
        quantize_dropout_multiple_of: Size = 1,
        accept_image_fmap: bool = False,
        implicit_neural_codebook: bool = False,
        mlp_kwargs: dict[str, Any] | None = None,
        beam_size: Size | None = None,
        eval_beam_size: Size | None = None,
        beam_score_quantizer_weights: Sequence[float] | None = None,
        quant_grad_frac: float = 0.0,
        return_zeros_for_masked_padding: bool = True,
        **vq_kwargs: Any,
    ) -> None:
        super().__init__()
        if num_quantizers is None and not isinstance(codebook_size, tuple):
            raise ValueError("num_quantizers: expected a number, or a tuple for codebook_size, got neither")
        sizes = codebook_size if isinstance(codebook_size, tuple) else (codebook_size,) * (num_quantizers or 0)
        num_quantizers = len(sizes) if num_quantizers is None else num_quantizers
        weights = [1.0] * num_quantizers if (given := beam_score_quantizer_weights) is None else list(given)
        for name, expected, fits in (
            ("heads", "1", heads == 1),
            ("codebook_size", f"{num_quantizers} sizes", 0 < len(sizes) == num_quantizers),
            ("codebook_size", "one size with shared_codebook", not shared_codebook or len(set(sizes)) == 1),
            ("eval_beam_size", "None without beam_size", eval_beam_size is None or beam_size is not None),
            ("beam_score_quantizer_weights", f"{num_quantizers} numbers", len(weights) == num_quantizers),
        ):
            if not fits:
                raise ValueError(f"{name}: expected {expected}, got another")

        # both learn their codes
        learns = [
            name for name, on in (("implicit_neural_codebook", implicit_neural_codebook), ("diveq", diveq)) if on
        ]
        for option in ("use_cosine_sim", "straight_through"):
            if check_flag(option, vq_kwargs.get(option, False)) and learns:
                raise ValueError(f"{option}: expected False with {learns[0]}, got True")

        # this module sees to layouts and projections, its layers to vectors
        self.accept_image_fmap = accept_image_fmap
        fmap_3d = check_flag("accept_3d_fmap", vq_kwargs.pop("accept_3d_fmap", False))
        channel_last = check_flag("channel_last", vq_kwargs.pop("channel_last", True))
        self.channel_first = not channel_last or accept_image_fmap or fmap_3d
        self.dim, self.codebook_dim = dim, dim if codebook_dim is None else codebook_dim
        check_size("codebook_dim", dim=dim, codebook_dim=self.codebook_dim)
        self.has_projections = self.codebook_dim != dim
        self.project_in = nn.Linear(dim, self.codebook_dim) if self.has_projections else nn.Identity()
        self.project_out = nn.Linear(self.codebook_dim, dim) if self.has_projections else nn.Identity()

        self.return_zeros_for_masked_padding = return_zeros_for_masked_padding
        self.implicit_neural_codebook, self.diveq = implicit_neural_codebook, diveq
        if implicit_neural_codebook:
            vq_kwargs |= {"learnable_codebook": True, "ema_update": False}
        if shared_codebook:
            vq_kwargs |= {"manual_ema_update": True, "manual_in_place_optimizer_update": True}
        if diveq:
            vq_kwargs |= {"learnable_codebook": True, "ema_update": False}
            vq_kwargs |= {"route_gradients_to_input": False, "commitment_weight": 0.0}
        self.codebook_sizes = sizes
        self.uniform_codebook_size = len(set(sizes)) == 1
        self.layers = nn.ModuleList(VectorQuantize(self.codebook_dim, size, **vq_kwargs) for size in sizes)
        self.vq_is_ema_updating = self._layer(0).ema_update

        cutoff, multiple_of = quantize_dropout_cutoff_index, quantize_dropout_multiple_of
        self._set_dropout(DepthDropout(num_quantizers, quantize_dropout, cutoff, multiple_of))
        self.quant_grad_frac = 1.0 if diveq else quant_grad_frac
        self.beam_size, self.eval_beam_size = beam_size, beam_size if eval_beam_size is None else eval_beam_size
        self._set_constant("beam_score_weights", weights)

        self.mlps: nn.ModuleList | tuple[None, ...] = (None,) * (num_quantizers - 1)
        if implicit_neural_codebook:
            unit = self._layer(0).use_cosine_sim
            options = {"l2norm_output": unit, **(mlp_kwargs or {})}
            self.mlps = nn.ModuleList(MLP(self.codebook_dim, **options) for _ in range(num_quantizers - 1))
        self.shared_codebook = shared_codebook
        if shared_codebook:
            for layer in self.layers:
                layer._codebook = self._layer(0)._codebook

    @property
    def codebook_size(self) -> int:
        return self._layer(0).codebook_size

    @property
    def codebooks(self) -> torch.Tensor | tuple[torch.Tensor, ...]:  # [Q, K, D], a tuple for different sizes
        books = tuple(self._layer(number).codebook for number in range(self.num_quantizers))
        return torch.stack(books) if self.uniform_codebook_size else books

    def get_codes_from_indices(self, indices: torch.Tensor) -> torch.Tensor:  # [B, ..., q] -> [Q, B, ..., D]
        """The code of every quantizer; zeros for -1, and for quantizers past the ``q`` that are given."""
        check_indices_of("indices", indices, self.beam_score_weights, least=1)
        quantized: torch.Tensor | None = None
        codes = []
        for number, index in enumerate(self._dropout.of_all_layers(indices).unbind(-1)):
            code = gather_codes(self._layer(number)._codebook.codes()[0], index)
            if quantized is not None and (mlp := self._mlp(number)) is not None:
                code = mlp.mix(code, quantized) * (index >= 0)[..., None]
            quantized = code if quantized is None else quantized + code
            codes.append(code)
        return torch.stack(codes)

    def get_output_from_indices(self, indices: torch.Tensor) -> torch.Tensor:  # [B, ..., q] -> [B, ..., dim]
        """Their sum past ``project_out``, channels last."""
        return project(self.project_out, self.get_codes_from_indices(indices).sum(dim=0))

    @checked
    def forward(
        self,
        x: torch.Tensor,  # [B, ..., dim] or [B, dim, ...]
        mask: torch.Tensor | None = None,  # [B, ...] bool
        indices: torch.Tensor | list[torch.Tensor] | None = None,  # [B, ..., Q]
        return_all_codes: bool = False,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool = False,
        beam_size: Size | None = None,
        rand_quantize_dropout_fixed_seed: Integer | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Quantize; in training also update the codebooks.

        Args:
            x: vectors in the layout the constructor was told.
            mask: False leaves a vector out.
            indices: ask for the summed cross entropies to these codes instead.
            return_all_codes: return the codes of all layers too, ``[Q, B, ..., D]``.
            sample_codebook_temp, freeze_codebook: of all layers.
            beam_size: as in the constructor, for this call.
            rand_quantize_dropout_fixed_seed: of the draw of the number of layers.

        Returns:
            ``(quantized, indices [B, ..., Q], losses [Q])`` and the codes; ``(quantized, cross_entropy)`` with
            ``indices``.
        """
        check_dtype_of("x", x, self.project_in)
        x = given_vectors("x", x, self.dim, 1 if self.channel_first else -1, self.beam_score_weights, least=2)
        last = x.movedim(1, -1) if self.channel_first else x
        mask = given_mask("mask", mask, last[..., 0])
        start = self._start(last)
        options: dict[str, Any] = {"sample_codebook_temp": sample_codebook_temp, "freeze_codebook": freeze_codebook}
        if beam_size is None:
            beam_size = self.beam_size if self.training else self.eval_beam_size
        drops = self.training and self.quantize_dropout and indices is None
        depth = self._depth(drops, rand_quantize_dropout_fixed_seed, x.device)
        if indices is not None:
            given = of_layers(indices, last[..., 0], self.codebook_sizes)
            quantized, total = self._cross_entropy(start, given, mask, options)
            return self._leave(quantized, start, last, mask), total
        if beam_size is not None and beam_size > 1:
            weights = self.beam_score_weights[:depth]
            quantized, columns, losses, residuals = beam_search(
                self._quantize, start, mask, beam_size, weights, self._handed_on, options
            )
            if self.training and not freeze_codebook:
                for number, (residual, index) in enumerate(zip(residuals, columns, strict=True)):
                    self._layer(number).update_indices(residual, index, mask=mask)
        else:
            quantized, columns, losses, residuals = self._greedy(start, mask, depth, options)
        if self.training and self.shared_codebook and not freeze_codebook:
            self._update_shared(residuals, mask)
        all_indices, all_losses = per_layer(columns, losses, self.num_quantizers)
        result = (self._leave(quantized, start, last, mask), all_indices, all_losses)
        return (*result, self.get_codes_from_indices(all_indices)) if return_all_codes else result

    def _start(self, last: torch.Tensor) -> torch.Tensor:  # [..., dim] -> [..., D]
        """What the first layer sees: NaN where no projection may see it, which takes no part in any layer."""
        if not self.has_projections:
            return last
        clean, usable = without_unusable(last)
        return self.project_in(clean).where(usable[..., None], torch.nan)

    def _greedy(
        self, residual: torch.Tensor, mask: torch.Tensor | None, depth: int, options: dict[str, Any]
    ) -> Steps:
        """The sum of the codes, and indices, loss and input of every layer."""
        quantized = torch.zeros_like(residual)
        columns, losses, residuals = [], [], []
        for number in range(depth):
            residuals.append(residual)
            value, index, loss = self._quantize(number, residual, quantized, mask=mask, **options)
            residual = residual - self._handed_on(value)
            quantized = quantized + value
            columns.append(index)
            losses.append(loss)
        return quantized, columns, losses, residuals

    def _cross_entropy(
        self, residual: torch.Tensor, indices: torch.Tensor, mask: torch.Tensor | None, options: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of the codes, and of the cross entropies of all layers to these indices."""
        quantized = torch.zeros_like(residual)
        total = residual.new_zeros((), dtype=torch.float32)
        for number, index in enumerate(indices.unbind(-1)):
            value, loss = self._quantize(number, residual, quantized, indices=index, mask=mask, **options)
            residual = residual - self._handed_on(value)
            quantized = quantized + value
            total = total + loss
        return quantized, total

    def _quantize(
        self, number: int, residual: torch.Tensor, quantized: torch.Tensor, **options: Any
    ) -> tuple[torch.Tensor, ...]:
        """One layer's answer on what the layers before left, given the sum of theirs."""
        mlp = self._mlp(number)
        transform = None if mlp is None else lambda codes: mlp(codes, condition=quantized)
        result: tuple[torch.Tensor, ...] = self._layer(number)(residual, codebook_transform_fn=transform, **options)
        return result

    def _handed_on(self, value: torch.Tensor) -> torch.Tensor:
        """A value as it is taken from the residual: with a share of its gradient."""
        share = self.quant_grad_frac
        return value.detach() if share <= 0 else share * value + (1 - share) * value.detach()

    def _leave(
        self, quantized: torch.Tensor, start: torch.Tensor, last: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        if self.diveq and self.training:
            clean, usable = without_unusable(start)
            quantized = directional_reparam(clean, quantized).where(usable[..., None], quantized)
        out = project(self.project_out, quantized)
        if mask is not None:
            out = out.where(mask[..., None], torch.zeros_like(out) if self.return_zeros_for_masked_padding else last)
        return out.movedim(-1, 1) if self.channel_first else out

    def _update_shared(self, residuals: list[torch.Tensor], mask: torch.Tensor | None) -> None:
        """What layers of one codebook leave for the end of a step."""
        layer = self._layer(0)
        if self.vq_is_ema_updating:
            layer._codebook.update_ema()
        layer.update_in_place_optimizer()
        masks = None if mask is None else torch.stack([mask] * len(residuals))
        layer.expire_codes_(torch.stack(residuals), masks)

    def _layer(self, number: int) -> VectorQuantize:
        layer = self.layers[number]
        assert isinstance(layer, VectorQuantize)
        return layer

    def _mlp(self, number: int) -> MLP | None:
        mlp = self.mlps[number - 1] if number else None
        assert mlp is None or isinstance(mlp, MLP)
        return mlp


class GroupedResidualVQ(nn.Module):
    """``GroupedResidualVQ`` of vector-quantize-pytorch: a :class:`ResidualVQ` for each part of a vector.

    Args:
        dim: size of the vectors.
        groups: G parts.
        accept_image_fmap: vectors along dimension 1.
        **kwargs: of :class:`ResidualVQ`.

    Raises:
        ValueError: on arguments that do not fit.
    """

    rvqs: nn.ModuleList

    @checked
    def __init__(self, *, dim: Size, groups: Size = 1, accept_image_fmap: bool = False, **kwargs: Any) -> None:
        super().__init__()
        if dim % groups:
            raise ValueError(f"groups: expected a divisor of dim={dim}, got {groups}")
        self.dim, self.groups, self.accept_image_fmap = dim, groups, accept_image_fmap
        self.rvqs = nn.ModuleList(
            ResidualVQ(dim=dim // groups, accept_image_fmap=accept_image_fmap, **kwargs) for _ in range(groups)
        )

    @property
    def codebooks(self) -> torch.Tensor:  # [G, Q, K, D]
        return torch.stack([torch.stack([*rvq.codebooks]) for rvq in self._quantizers()])

    @property
    def split_dim(self) -> int:
        return 1 if self.accept_image_fmap else -1

    def get_codes_from_indices(self, indices: torch.Tensor) -> torch.Tensor:  # [G, B, ..., q] -> [G, Q, B, ..., D]
        given = of_groups(indices, self.groups)
        return torch.stack([rvq.get_codes_from_indices(i) for rvq, i in zip(self._quantizers(), given, strict=True)])

    def get_output_from_indices(self, indices: torch.Tensor) -> torch.Tensor:  # [G, B, ..., q] -> [B, ..., dim]
        """The sum of codes of every group past ``project_out``, channels last."""
        given = of_groups(indices, self.groups)
        parts = [rvq.get_output_from_indices(i) for rvq, i in zip(self._quantizers(), given, strict=True)]
        return torch.cat(parts, dim=-1)

    @checked
    def forward(
        self,
        x: torch.Tensor,  # [B, ..., dim] or [B, dim, ...]
        indices: torch.Tensor | Sequence[torch.Tensor] | None = None,  # [G, B, ..., Q]
        return_all_codes: bool = False,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool = False,
        mask: torch.Tensor | None = None,  # [B, ...] bool
    ) -> tuple[Any, ...]:
        """As :meth:`ResidualVQ.forward`; indices ``[G, B, ..., Q]``, losses ``[G, Q]``, a tuple of all codes."""
        x = given_vectors("x", x, self.dim, self.split_dim, self._quantizers()[0].beam_score_weights, least=2)
        asked = indices is not None and not (isinstance(indices, (list, tuple)) and not indices)
        given = of_groups(indices, self.groups) if asked else [None] * self.groups
        seed = shared_seed(x.device) if self.training else None
        parts = zip(self._quantizers(), x.chunk(self.groups, dim=self.split_dim), given, strict=True)
        results = [
            rvq(
                part,
                indices=index,
                mask=mask,
                return_all_codes=return_all_codes,
                sample_codebook_temp=sample_codebook_temp,
                freeze_codebook=freeze_codebook,
                rand_quantize_dropout_fixed_seed=seed,
            )
            for rvq, part, index in parts
        ]
        quantized, *rest = zip(*results, strict=True)
        joined = torch.cat(quantized, dim=self.split_dim)
        if given[0] is not None:
            return joined, torch.stack(rest[0]).sum()
        all_indices, all_losses, *all_codes = rest
        return (joined, torch.stack(all_indices), torch.stack(all_losses), *all_codes)

    def _quantizers(self) -> list[ResidualVQ]:
        return [rvq for rvq in self.rvqs if isinstance(rvq, ResidualVQ)]
