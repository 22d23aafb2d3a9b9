"""What a quantizer is given, as rows of its groups, and what it gives back, in the layout it was given."""

from __future__ import annotations

import torch
from torch import nn

from vqkernels._core.usable import usable_rows
from vqkernels.nn.rows import kept_rows


class Layout(nn.Module):
    """Vectors along the last dimension or the first after the batch, projected where codes have another width."""

    dim: int
    code_dim: int
    groups: int
    channels_first: bool
    project_in: nn.Linear | None
    project_out: nn.Linear | None

    def _rows(
        self, x: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Size]:  # [N, G, D], [N] bool, the shape of the indices
        """The vectors that are compared with codes, and which of them take part; the others are zero."""
        x = x.movedim(1 if self.channels_first else -1, -1)
        usable = kept_rows(usable_rows(x), mask)
        # zeroed before anything is computed from them, so that no backward multiplies a NaN by zero
        x = torch.where(usable[..., None], x, 0)
        if self.project_in is not None:
            x = self.project_in(x.to(self.project_in.weight.dtype))
        return x.reshape(-1, self.groups, self.code_dim // self.groups), usable.reshape(-1), usable.shape

    def _output(
        self,
        values: torch.Tensor,  # [N, G, D]
        indices: torch.Tensor,  # [N, G]
        shape: torch.Size,
    ) -> torch.Tensor:  # [..., dim] or [B, dim, ...]
        values = values.reshape(-1, self.code_dim)
        if self.project_out is not None:
            values = self.project_out(values.to(self.project_out.weight.dtype))
            values = torch.where((indices >= 0).any(dim=1, keepdim=True), values, 0)
        return values.reshape(*shape, self.dim).movedim(-1, 1 if self.channels_first else -1)

    def _shaped(self, indices: torch.Tensor, shape: torch.Size) -> torch.Tensor:  # [N, G] -> [...] or [..., G]
        return indices.reshape(shape if self.groups == 1 else (*shape, self.groups))
