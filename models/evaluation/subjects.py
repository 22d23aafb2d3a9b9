"""What is evaluated: any tokenizer, as a function from images to codes and reconstructions.

n images, S pixels, h w grid, T concept tokens, G groups, K codes, D dimensions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch

from models.errors import UserError
from models.tokenizers import Tokenizer
from models.tokenizers.concept import ConceptTokenizer


class Subject(ABC):
    """A tokenizer in eval mode; perhaps only a first part of what it codes is decoded."""

    codebook: torch.Tensor | None  # [G, K, D]
    downsample = 1  # pixels per side of a token in a grid
    groups: int  # that are decoded
    tokens_decoded: int | None = None  # of each image, if that is known beforehand

    @abstractmethod
    def check_size(self, size: int) -> None:
        """Raises UserError for images of another size than it takes."""

    @abstractmethod
    def __call__(self, images: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and reconstructions [n, 3, S, S] of images [n, 3, S, S]; ``index`` [n] numbers them."""

    def tokens(self, codes: torch.Tensor) -> int:
        """Tokens of all images, as many as are decoded."""
        if self.tokens_decoded is not None:
            return len(codes) * self.tokens_decoded
        return codes.numel() // (1 if self.codebook is None else len(self.codebook))

    @property
    def bits_per_token(self) -> float:
        """NaN where tokens are not quantized."""
        return math.nan if self.codebook is None else self.groups * math.log2(self.codebook.shape[1])


class GridSubject(Subject):
    """A grid tokenizer; ``keep`` decodes the first groups of every token alone."""

    def __init__(self, tokenizer: Tokenizer, keep: int | None = None) -> None:
        self._tokenizer, self.codebook = tokenizer, tokenizer.quantizer.codebook.detach()
        self.downsample = tokenizer.downsample
        self.groups = _kept(keep, len(self.codebook), "groups")

    def check_size(self, size: int) -> None:
        if size % self.downsample:
            raise UserError(f"size: expected a multiple of {self.downsample} pixels, got {size}")

    def __call__(self, images: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = self._tokenizer.encode(images)
        shown = codes
        if self.codebook is not None and self.groups < len(self.codebook):
            shown = codes.clone()
            shown[..., self.groups :] = -1  # decoded as zeros
        return codes, self._tokenizer.decode(shown).float()


class ConceptSubject(Subject):
    """A concept tokenizer; ``keep`` decodes the first tokens of every image alone."""

    def __init__(self, tokenizer: ConceptTokenizer, keep: int | None = None) -> None:
        self._tokenizer = tokenizer
        self.codebook = None if tokenizer.quantizer is None else tokenizer.quantizer.codebook.detach()
        self.groups = 1 if self.codebook is None else len(self.codebook)
        self.tokens_decoded = _kept(keep, tokenizer.length, "tokens")

    def check_size(self, size: int) -> None:
        if size != self._tokenizer.image_size:
            raise UserError(f"size: expected {self._tokenizer.image_size} pixels, got {size}")

    def __call__(self, images: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = self._tokenizer.encode(images)
        # the noise that an image is decoded from belongs to its number, whatever the batch
        decoded = self._tokenizer.decode(codes, keep=self.tokens_decoded, numbers=index.tolist())
        return codes, decoded.float()


def subject_of(tokenizer: Tokenizer | ConceptTokenizer, keep: int | None = None) -> Subject:
    """The tokenizer as what is evaluated."""
    return (
        ConceptSubject(tokenizer, keep) if isinstance(tokenizer, ConceptTokenizer) else GridSubject(tokenizer, keep)
    )


def _kept(keep: int | None, count: int, what: str) -> int:
    if keep is not None and not 1 <= keep <= count:
        raise UserError(f"keep: expected 1 to {count} {what}, got {keep}")
    return count if keep is None else keep
