"""What priors need of a tokenizer of either kind: codes or latents as grids, and images back.

The T tokens of a concept tokenizer are a grid of one row.
B batch, H W pixels, h w grid, D code dimension, G groups, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from models.tokenizers.concept import ConceptTokenizer
from models.tokenizers.tokenizer import Tokenizer


class CodeTable(NamedTuple):
    """Sizes of the codes; 0 codes where tokens are not quantized."""

    num_codes: int  # of each group
    groups: int
    code_dim: int  # all groups together


class Codec:
    """A tokenizer of grids or of concepts."""

    def __init__(self, tokenizer: Tokenizer | ConceptTokenizer) -> None:
        self.tokenizer = tokenizer

    @property
    def codebook(self) -> torch.Tensor | None:  # [G, K, D/G]
        quantizer = self.tokenizer.quantizer
        return None if quantizer is None else quantizer.codebook.detach()

    @property
    def table(self) -> CodeTable:
        codebook = self.codebook
        if codebook is None:
            assert isinstance(self.tokenizer, ConceptTokenizer)
            return CodeTable(0, 1, self.tokenizer.decoder.concept.in_features)
        groups, num_codes, dim = codebook.shape
        return CodeTable(num_codes, groups, groups * dim)

    def codes(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, h, w] or [B, h, w, G]
        if self.tokenizer.quantizer is None:
            raise ValueError("kind: expected 'latents' of a tokenizer without a quantizer, got 'codes'")
        codes = self.tokenizer.encode(images)
        return codes.unsqueeze(1) if isinstance(self.tokenizer, ConceptTokenizer) else codes

    def latents(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, D, h, w]
        return self.tokenizer.latents(images)

    def images(
        self,
        codes: torch.Tensor,  # [B, h, w] or [B, h, w, G]
        *,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
    ) -> torch.Tensor:  # [B, 3, H, W]
        """Images of codes; seed and numbers of the samples name the noise of a diffusion decoder."""
        if isinstance(self.tokenizer, ConceptTokenizer):
            return self._from_concepts(codes.squeeze(1), seed, numbers)
        return self.tokenizer.decode(codes)

    def images_of_latents(
        self,
        latents: torch.Tensor,  # [B, D, h, w]
        *,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
    ) -> torch.Tensor:  # [B, 3, H, W]
        """Through quantizer, where there is one, and decoder, as VQGAN-LC has it."""
        quantizer = self.tokenizer.quantizer
        if isinstance(self.tokenizer, ConceptTokenizer):
            rows = latents.squeeze(2)  # [B, D, T]
            tokens = rows.mT if quantizer is None else quantizer.encode(rows)
            return self._from_concepts(tokens, seed, numbers)
        return self.tokenizer.decode(self.tokenizer.quantizer.encode(latents))

    def _from_concepts(self, tokens: torch.Tensor, seed: int, numbers: Sequence[int] | None) -> torch.Tensor:
        """Images of the first tokens, [B, t] indices, [B, t, G], or [B, t, D] without a quantizer."""
        assert isinstance(self.tokenizer, ConceptTokenizer)
        kept = tokens.shape[1]
        padding = (0, 0) * (tokens.ndim - 2) + (0, self.tokenizer.length - kept)
        return self.tokenizer.decode(F.pad(tokens, padding), keep=kept, seed=seed, numbers=numbers)
