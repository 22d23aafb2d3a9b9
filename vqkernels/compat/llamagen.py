"""The quantizer of LlamaGen's image tokenizer (Sun et al. 2024): same name, signature, results and state dict.

``from vqkernels.compat.llamagen import VectorQuantizer`` replaces
``from tokenizer.tokenizer_image.vq_model import VectorQuantizer``. Differences are intended and listed in
``vqkernels/compat/README.md``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from vqkernels._core.arguments import Size, checked
from vqkernels._core.checks import check_size, check_state
from vqkernels._core.recomputation import recomputing
from vqkernels._core.shown import shown
from vqkernels.compat._feature_maps import Match, entries, match
from vqkernels.compat._inputs import check_indices_of, check_map_shape
from vqkernels.nn.codebook import unit
from vqkernels.nn.regularizers import LLAMAGEN_ENTROPY

__all__ = ["VectorQuantizer"]

_WINDOW = 65536  # vectors that the usage looks back on

Losses = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | int]


class VectorQuantizer(nn.Module):
    """``VectorQuantizer`` of LlamaGen: same arguments, results and state dict; no N x K matrix.

    Equivalent, with z as rows and, with ``l2_norm``, rows and weight scaled to unit length, to::

        d       = cdist(z, weight) ** 2
        indices = d.argmin(-1)
        z_q     = z + (weight[indices] - z).detach()
        vq_loss = mse(z.detach(), weight[indices])
        commit_loss  = beta * mse(z, weight[indices].detach())
        p            = softmax(-d / 0.01)
        entropy_loss = entropy_loss_ratio * (entropy(p).mean() - entropy(p.mean(0)))

    Args:
        n_e: K.
        e_dim: size D of a code, and channels of the input.
        beta: weight of the commitment loss.
        entropy_loss_ratio: weight of the entropy loss.
        l2_norm: compare unit vectors; the value is the code scaled to unit length.
        show_usage: keep the last 65536 indices of training, and return the share of codes among them.

    Numerics:
        The lookup is exact and the value is the code to the bit; losses are at least float32. The entropy loss is
        :data:`vqkernels.nn.LLAMAGEN_ENTROPY`. A vector with a non-finite entry gets code 0 and takes no part in
        losses, gradients and usage.

    Raises:
        ValueError: on an input that does not fit.

    Example:
        >>> import torch
        >>> from vqkernels.compat.llamagen import VectorQuantizer
        >>> quantizer = VectorQuantizer(16, 4, 0.25, 0.1, l2_norm=True, show_usage=True)
        >>> z_q, (vq_loss, commit_loss, entropy_loss, usage), (_, _, indices) = quantizer(torch.randn(2, 4, 3, 3))
        >>> torch.equal(quantizer.get_codebook_entry(indices, (2, 4, 3, 3)), z_q)
        True
        >>> usage.item() == len(indices.unique()) / 16
        True
    """

    codebook_used: torch.Tensor  # [65536] int32, oldest first, -1 before there were so many

    @checked
    def __init__(
        self, n_e: Size, e_dim: Size, beta: float, entropy_loss_ratio: float, l2_norm: bool, show_usage: bool
    ) -> None:
        check_size("n_e", n_e=n_e, e_dim=e_dim)
        super().__init__()
        self.n_e, self.e_dim, self.beta = n_e, e_dim, beta
        self.entropy_loss_ratio, self.l2_norm, self.show_usage = entropy_loss_ratio, l2_norm, show_usage
        self.embedding = nn.Embedding(n_e, e_dim)
        with torch.no_grad():
            self.embedding.weight.uniform_(-1.0 / n_e, 1.0 / n_e)
            self.embedding.weight.copy_(self._codebook())
        if show_usage:
            # integers stay what they are in a module cast to half precision
            self.register_buffer("codebook_used", torch.full((_WINDOW,), -1, dtype=torch.int32))

    def forward(
        self,
        z: torch.Tensor,  # [B, D, H, W]
    ) -> tuple[torch.Tensor, Losses, tuple[None, None, torch.Tensor]]:
        """``(z_q, (vq_loss, commit_loss, entropy_loss, usage), (None, None, indices [N]))``.

        In evaluation the losses are None and the usage is 0.
        """
        check_state(self.embedding.weight)
        codebook = self._codebook()
        found = match(z, codebook, normalize=self.l2_norm)
        losses: Losses = (None, None, None, 0)
        if self.training:
            usage = self._usage(found.labels) if self.show_usage else 0
            losses = found.codebook_loss, self.beta * found.encoder_loss, self._entropy_loss(found, codebook), usage
        return found.quantized(), losses, (None, None, found.indices)

    @checked
    def get_codebook_entry(
        self,
        indices: torch.Tensor,  # [...]
        shape: Sequence[int] | None = None,
        channel_first: bool = True,
    ) -> torch.Tensor:
        """Codes by index: ``[..., D]``, or of ``shape``: ``(B, D, H, W)``, else ``(B, H, W, D)``."""
        check_indices_of("indices", indices, self.embedding.weight)
        if shape is None or not channel_first:
            codes = entries(self._codebook(), indices, None)
            return codes if shape is None else codes.reshape(check_map_shape(shape, codes))
        if len(shape) < 2:
            raise ValueError(f"shape: expected that of a map, got {shown(shape)}")
        batch, channels, *places = shape
        return entries(self._codebook(), indices, (batch, *places, channels))

    def _codebook(self) -> torch.Tensor:  # [K, D]
        weight = self.embedding.weight
        return unit(weight) if self.l2_norm else weight

    def _entropy_loss(self, found: Match, codebook: torch.Tensor) -> torch.Tensor:  # []
        if not self.entropy_loss_ratio:
            return found.rows.new_zeros(())
        return self.entropy_loss_ratio * LLAMAGEN_ENTROPY(found.rows, codebook, weight=found.usable)

    @torch.no_grad()
    def _usage(self, labels: torch.Tensor) -> torch.Tensor:  # [N], -1 = left out -> []
        """Take the new indices into the window; the share of codes in it."""
        seen = torch.cat([self.codebook_used, labels.to(self.codebook_used)])
        # the window, and what it gets, in order; what takes no part goes to the front
        taken = torch.cat([torch.ones_like(self.codebook_used, dtype=torch.bool), labels >= 0])
        if not recomputing():
            self.codebook_used.copy_(seen[taken.argsort(stable=True)][-_WINDOW:])
        used = torch.zeros(self.n_e + 1, device=labels.device)
        used[self.codebook_used.long()] = 1.0
        return used[:-1].mean()
