"""``GumbelQuantize``: codes drawn from a distribution that a projection of the vector gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vqkernels._core.arguments import Positive, Size, checked
from vqkernels._core.checks import check_size
from vqkernels._core.library import saveable
from vqkernels._core.shown import shape_of
from vqkernels.compat._embedding_quantizer import Remap, Renamed, UnknownIndex
from vqkernels.compat._feature_maps import as_map, map_rows
from vqkernels.compat._inputs import check_dtype_of
from vqkernels.nn.scores import sample_codes, soft_values
from vqkernels.ops.gather_codes import gather_codes
from vqkernels.ops.soft_assignment_entropy import unrounded_entropies


class GumbelQuantize(Renamed):
    """``GumbelQuantize`` of taming-transformers: same arguments, results and state dict; no N x K matrix.

    Equivalent to::

        logits = proj(z)
        soft   = gumbel_softmax(logits, temp)                       # one-hot with the gradient of soft, if hard
        z_q    = soft @ embed.weight
        diff   = kl_weight * KL(softmax(logits), uniform)

    A 1 x 1 convolution scores each code by the product of its filter with a vector, so that logits, noise and soft
    assignments are made for some vectors at a time, and again in the backward. They exist as a whole where they are
    asked for: ``return_logits=True``.

    Args:
        num_hiddens: channels of the input.
        embedding_dim: size D of a code.
        n_embed: K.
        straight_through: in training, take one code; False takes the mean of all.
        kl_weight: weight of ``diff``.
        temp_init: the temperature where none is given, the attribute ``temperature``.
        use_vqinterface: results as those of the other quantizers; False returns ``(z_q, diff, indices)``.
        remap: path of an ``.npy`` file with the indices in use: only these are drawn, as positions in it.
        unknown_index: what an index not in use becomes: a number, ``"extra"`` or ``"random"``.

    Numerics:
        At least float32 under any autocast. A code is drawn in evaluation too. A vector with a non-finite entry gets
        the first code and takes no part in ``diff`` and gradients.

    Raises:
        ValueError: on an input that does not fit, or a ``remap`` that does not list codes.

    Example:
        >>> import torch
        >>> from vqkernels.compat.taming import GumbelQuantize
        >>> z_q, diff, (_, _, indices) = GumbelQuantize(8, 4, n_embed=16)(torch.randn(2, 8, 3, 3))
        >>> list(z_q.shape), list(indices.shape)
        ([2, 4, 3, 3], [2, 3, 3])
    """

    @checked
    def __init__(
        self,
        num_hiddens: Size,
        embedding_dim: Size,
        n_embed: Size,
        straight_through: bool = True,
        kl_weight: float = 5e-4,
        temp_init: Positive = 1.0,
        use_vqinterface: bool = True,
        remap: Remap = None,
        unknown_index: UnknownIndex = "random",
    ) -> None:
        check_size("n_embed", n_embed=n_embed, num_hiddens=num_hiddens)
        check_size("n_embed", n_embed=n_embed, embedding_dim=embedding_dim)
        super().__init__(n_embed, remap, unknown_index)
        self.embedding_dim, self.n_embed = embedding_dim, n_embed
        self.straight_through, self.kl_weight, self.temperature = straight_through, kl_weight, temp_init
        self.proj = nn.Conv2d(num_hiddens, n_embed, 1)
        self.embed = nn.Embedding(n_embed, embedding_dim)
        self.use_vqinterface = use_vqinterface

    @checked
    def forward(
        self,
        z: torch.Tensor,  # [B, num_hiddens, H, W]
        temp: Positive | None = None,
        return_logits: bool = False,
    ) -> tuple[Any, ...]:
        """``(z_q, diff, (None, None, indices [B, H, W]))`` and, if asked for, ``logits [B, K, H, W]``.

        Without ``use_vqinterface``: ``(z_q, diff, indices)``.
        """
        rows, usable, shape = map_rows(z, self.proj.weight)
        if return_logits:
            if z.dim() != 4 or not z.shape[2] * z.shape[3]:
                raise ValueError(f"z: expected [B, C, H, W] with return_logits, got shape {shape_of(z)}")
            check_dtype_of("z", z, self.proj)
        dtype = torch.promote_types(z.dtype, self.embed.weight.dtype)
        wide = torch.promote_types(dtype, torch.float32)
        # a filter and its bias are the code of a vector with a 1 at its end
        rows = nn.functional.pad(rows.to(wide), (0, 1), value=1.0)
        filters = self._in_use(torch.cat([self.proj.weight.flatten(1), self._bias()], dim=1)).to(wide)
        values = self._in_use(self.embed.weight).to(wide)
        drawn, z_q = self._draw(rows, filters, values, self.temperature if temp is None else temp)
        z_q = torch.where(usable[:, None], z_q, values[0].detach())
        # rounded, the entropy would be off by more than the divergence of assignments that are nearly uniform
        entropy = unrounded_entropies(rows, filters, metric="dot", weight=usable.to(wide)).sample
        diff = (self.kl_weight * (math.log(self.n_embed) - entropy) * usable.any()).to(wide)
        indices = drawn.where(usable, 0).reshape(shape)
        if self.remap is not None:
            indices = self.remap_to_used(self.used[indices].long())
        z_q = as_map(z_q.to(dtype), shape)
        if not self.use_vqinterface:
            return z_q, diff, indices
        result = z_q, diff, (None, None, indices)
        return (*result, self._logits(z)) if return_logits else result

    @checked
    def get_codebook_entry(
        self,
        indices: torch.Tensor,  # [B * H * W]
        shape: Sequence[int],
    ) -> torch.Tensor:
        """Codes by index: ``[B, D, H, W]`` for a ``shape`` of ``(B, H, W, D)``."""
        return self.renamed_entries(self.embed.weight, indices, (*shape[:-1], self.embedding_dim))

    def _draw(
        self,
        rows: torch.Tensor,  # [N, C]
        filters: torch.Tensor,  # [U, C]
        values: torch.Tensor,  # [U, D]
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [N], [N, D]
        seed = torch.randint(2**31, (), device=rows.device)
        grouped = rows[:, None], filters[None]
        drawn = sample_codes(*grouped, "dot", 1.0, seed)[:, 0, 0]
        if self.training and not self.straight_through:
            return drawn, soft_values(*grouped, "dot", temperature, values=values[None], seed=seed)[:, 0]
        codes = gather_codes(values, drawn)[:, None]
        return drawn, soft_values(
            *grouped, "dot", temperature, values=values.detach()[None], seed=seed, instead=codes
        )[:, 0]

    def _in_use(self, table: torch.Tensor) -> torch.Tensor:  # [K, ...] -> [U, ...]
        return table if self.remap is None else table[self.used]

    def _bias(self) -> torch.Tensor:  # [K, 1]
        assert self.proj.bias is not None
        return self.proj.bias[:, None]

    def _logits(self, z: torch.Tensor) -> torch.Tensor:  # [B, U, H, W]
        logits: torch.Tensor = self.proj(saveable(z))
        return logits if self.remap is None else logits[:, self.used]
