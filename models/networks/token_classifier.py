"""A vision transformer that tells the class of an image from its codes (VQGAN-LC's classification).

B batch, h w grid, G groups, K codes, D code dimension.
"""

from __future__ import annotations

import torch
from torch import nn

from models.networks.code_embedding import CodeTable
from models.networks.code_shape import CodeShape
from models.networks.vit import ViT, ViTConfig, layer_of


class TokenClassifier(nn.Module):
    """Codes as the tokenizer's vectors, centred and of unit spread, then a ViT on the map that they are."""

    def __init__(self, config: ViTConfig, codes: CodeShape) -> None:
        super().__init__()
        side = config.grid * config.patch_size
        if codes.frames > 1 or codes.grid != (side, side):
            got = (codes.frames, *codes.grid) if codes.frames > 1 else codes.grid
            raise ValueError(f"codes: expected a grid of {side} x {side}, got {' x '.join(map(str, got))}")
        if codes.num_classes < 2:
            raise ValueError(f"codes: expected those of at least 2 classes, got {codes.num_classes}")
        self.table = CodeTable(codes.num_codes, codes.groups, codes.code_dim)
        self.vit = ViT(config, channels=codes.code_dim, num_classes=codes.num_classes)

    def set_codes(self, codes: torch.Tensor) -> None:  # [G, K, D/G]
        """The tokenizer's vectors; a ViT takes what images are, whatever the scale of a codebook."""
        exact = codes.double()  # codes may lie far from zero
        centred = exact - exact.mean((0, 1))
        spread = centred.square().mean().sqrt()
        if not spread > 0:
            raise ValueError("codes: expected vectors that differ, got one")
        self.table.set_codes((centred / spread).to(codes.dtype))

    def forward(self, codes: torch.Tensor) -> torch.Tensor:  # [B, h, w] or [B, h, w, G] -> [B, classes]
        return self.vit(self.table(codes).movedim(-1, 1))

    def layers_below_head(self, name: str) -> int:
        """Of a weight: 0 in the head, more at the input."""
        layers = self.vit.config.layers
        return layers + 1 - layer_of(name.removeprefix("vit."), layers)
