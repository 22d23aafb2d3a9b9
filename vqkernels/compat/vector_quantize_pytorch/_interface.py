"""What surrounds a quantizer: layouts in and out, its codes by index, its codebook from outside."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.optim import Optimizer

from vqkernels._core.checks import check_floating, check_index_values, check_shape
from vqkernels._core.library import saveable
from vqkernels._core.recomputation import recomputing
from vqkernels._core.shown import shape_of
from vqkernels._core.usable import usable_rows
from vqkernels.compat._inputs import check_dtype_of, check_indices_of, given_vectors
from vqkernels.compat.vector_quantize_pytorch._codebook import Codebook
from vqkernels.compat.vector_quantize_pytorch._rows import Rows
from vqkernels.compat.vector_quantize_pytorch._tensors import Constants
from vqkernels.distributed import sum_with_gradient, world
from vqkernels.nn.rows import kept_rows, without_unusable
from vqkernels.ops.gather_codes import gather_codes


class QuantizerInterface(Constants):
    """Everything of :class:`VectorQuantize` but its options and its training step."""

    dim: int
    heads: int
    separate_codebook_per_head: bool
    channel_last: bool
    accept_image_fmap: bool
    accept_3d_fmap: bool
    return_zeros_for_masked_padding: bool
    has_projections: bool
    project_in: Callable[[torch.Tensor], torch.Tensor]
    project_out: Callable[[torch.Tensor], torch.Tensor]
    _codebook: Codebook
    in_place_codebook_optimizer: Optimizer | None

    @property
    def ema_update(self) -> bool:
        return self._codebook.ema_update

    @property
    def codebook(self) -> torch.Tensor:  # [K, D], or [H, K, D] with separate codebooks
        """The codes as they are stored; assigning writes them in place and starts their statistics over."""
        return self._codebook.embed if self.separate_codebook_per_head else self._codebook.embed[0]

    @codebook.setter
    @torch.no_grad()
    def codebook(self, codes: torch.Tensor) -> None:
        book = self._codebook
        check_floating("codes", codes)
        check_shape("codes", codes, tuple(self.codebook.shape), "that of the codebook")
        book.embed.copy_(codes if self.separate_codebook_per_head else codes[None])
        # or the next update would bring the old codes back
        book.embed_avg.copy_(book.embed * book.cluster_size[..., None])
        book.started_()

    def get_codes_from_indices(self, indices: torch.Tensor) -> torch.Tensor:
        """Codes ``[..., heads * D]`` of indices as :meth:`forward` returns them, channels where the input has them.

        -1 gives zeros. In training mode the codes may have moved since the indices were found.
        """
        return self._channels(self._decoded(indices))

    def get_output_from_indices(self, indices: torch.Tensor) -> torch.Tensor:
        """The same past ``project_out``."""
        return self._channels(self.project_out(self._decoded(indices)))

    def _decoded(self, indices: torch.Tensor) -> torch.Tensor:  # [..., (heads)] -> [..., heads * D]
        check_indices_of("indices", indices, self._codebook.cluster_size)
        if indices.dim() < 1 + (self.heads > 1) or (self.heads > 1 and indices.shape[-1] != self.heads):
            legend = f"[B, ..., heads={self.heads}]" if self.heads > 1 else "[B, ...]"
            raise ValueError(f"indices: expected {legend}, got shape {shape_of(indices)}")
        codes = self._codebook.codes()
        codes = gather_codes(codes if self.separate_codebook_per_head else codes[0], indices)
        codes = codes.to(self._codebook.embed.dtype)
        return codes.flatten(-2) if self.heads > 1 else codes

    def _channels(self, x: torch.Tensor) -> torch.Tensor:  # [B, ..., D]
        return x.movedim(-1, self._channel_dim(x.dim()))

    def _channel_dim(self, dims: int) -> int:
        fmap = self.accept_image_fmap or self.accept_3d_fmap
        return 1 if fmap or (not self.channel_last and dims > 2) else -1

    def update_in_place_optimizer(self) -> None:
        """Step the codebook's own optimizer, on gradients averaged over processes."""
        if self.in_place_codebook_optimizer is None or recomputing():
            return
        processes = world()[1]
        if self._codebook.use_ddp is not False and processes > 1:
            for gradient in [p.grad for p in self._codebook.parameters() if p.grad is not None]:
                gradient.copy_(sum_with_gradient(gradient) / processes)
        self.in_place_codebook_optimizer.step()
        self.in_place_codebook_optimizer.zero_grad()

    def maybe_split_heads_from_input(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, N, heads * D]`` as ``[1, B * heads, N, D]``, or ``[heads, B, N, D]`` with separate codebooks."""
        check_floating("x", x)
        if self.heads == 1:
            return x
        if x.dim() != 3 or x.shape[2] % self.heads:
            raise ValueError(f"x: expected [B, N, heads * D] with heads={self.heads}, got shape {shape_of(x)}")
        b, n, _ = x.shape
        split = x.reshape(b, n, self.heads, x.shape[2] // self.heads)
        if self.separate_codebook_per_head:
            return split.permute(2, 0, 1, 3)
        return split.transpose(1, 2).flatten(0, 1)[None]

    @torch.no_grad()
    def expire_codes_(
        self,
        x: torch.Tensor,  # [..., heads * D]
        mask: torch.Tensor | None = None,  # [...] bool
    ) -> None:
        """Replace codes that are dead by vectors of ``x``, past any projection."""
        x = given_vectors("x", x, self.heads * self._codebook.embed.shape[2], -1, self._codebook.cluster_size)
        rows = self._split(x, kept_rows(usable_rows(x), mask))
        self._codebook.expire_codes_(rows.x.transpose(0, 1), rows.usable.transpose(0, 1))

    @torch.no_grad()
    def update_indices(self, x: torch.Tensor, indices: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """Take vectors into the codebook under indices found elsewhere; -1 leaves one out."""
        rows = self._rows(self.check_input("x", x), mask)
        check_indices_of("indices", indices, self._codebook.cluster_size)
        check_shape(
            "indices",
            indices,
            (*rows.shape, self.heads) if self.heads > 1 else tuple(rows.shape),
            "[B, ..., (heads)]",
        )
        check_index_values("indices", indices, self._codebook.codebook_size)
        given = indices.reshape(rows.usable.shape)
        self._codebook.update_codebook(rows.x, torch.where(rows.usable & (given >= 0), given, -1))

    update_ema_indices = update_indices

    def _rows(self, x: torch.Tensor, mask: torch.Tensor | None) -> Rows:
        x, usable = without_unusable(x.movedim(self._channel_dim(x.dim()), -1))
        usable = kept_rows(usable, mask)
        return self._split(self.project_in(x), usable)

    def check_input(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """``x``, which has to be vectors in the layout the constructor was told."""
        check_floating(name, x)
        if self.has_projections:
            check_dtype_of(name, x, self.project_in)
        return given_vectors(name, x, self.dim, self._channel_dim(x.dim()), self._codebook.cluster_size, least=2)

    def _split(self, x: torch.Tensor, usable: torch.Tensor) -> Rows:  # [..., heads * D], [...]
        rows, shape = x.float(), usable.shape
        usable = usable.reshape(-1, 1).expand(-1, self.heads)
        rows = rows.reshape(*usable.shape, rows.shape[-1] // self.heads)
        if not self.separate_codebook_per_head:
            rows, usable = rows.flatten(0, 1)[:, None], usable.reshape(-1, 1)
        return Rows(self._codebook.transform_input(rows), usable, shape)

    def _leave(
        self,
        values: torch.Tensor,  # [N, H, D] or [N, H, M, D]
        x: torch.Tensor,
        mask: torch.Tensor | None,
        shape: torch.Size,
        topk: int | None,
    ) -> torch.Tensor:
        """Values as vectors in the layout and dtype of the input."""
        heads = 1 if topk else self.heads
        values = values.to(x.dtype).reshape(*shape, *((topk,) if topk else ()), heads * values.shape[-1])
        out = self.project_out(values)
        if mask is not None:
            mask = saveable(mask)
            last = x.movedim(self._channel_dim(x.dim()), -1)
            padding = torch.zeros_like(last) if self.return_zeros_for_masked_padding else last
            if topk:
                mask, padding = mask[..., None], padding[..., None, :]
            out = out.where(mask[..., None], padding)
        return out.movedim(-1, self._channel_dim(x.dim()))

    def _masked(self, indices: torch.Tensor, mask: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """-1 where the mask is False; indices of rows in any order of heads."""
        return indices.reshape(shape.numel(), indices.numel() // max(1, shape.numel())).where(mask.reshape(-1, 1), -1)

    def _length_dim(self) -> int:
        return 1 if self.channel_last else 2
