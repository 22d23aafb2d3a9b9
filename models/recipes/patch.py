"""The small tokenizer with five quantizers, and nothing else different."""

from __future__ import annotations

import dataclasses

from models.networks.patch import PatchConfig
from models.tokenizers.config import QuantizerConfig
from models.training.tokenizer_run import TokenizerRun


def patch_fc() -> TokenizerRun:
    """VQGAN-FC: few dimensions per code, codes trained by gradient."""
    return patch("patch_fc", QuantizerConfig(codebook="learned", commitment_weight=1.0, codebook_weight=0.33))


def patch_ema() -> TokenizerRun:
    """VQGAN-EMA: codes follow a running mean of their vectors, so there is only a commitment loss."""
    return patch("patch_ema", QuantizerConfig(codebook="ema", commitment_weight=1.0, codebook_weight=0.0))


def patch_cvq() -> TokenizerRun:
    """CVQ-VAE: codes trained by gradient; those out of use jump to encoder vectors of the batch."""
    return patch("patch_cvq", online())


def patch_lc() -> TokenizerRun:
    """VQGAN-LC: frozen codes, k-means of training patches, seen through a trained linear projector."""
    quantizer = QuantizerConfig(codebook="frozen", commitment_weight=1.0, codebook_weight=0.33, init="matched")
    return patch("patch_lc", quantizer)


def patch_groups() -> TokenizerRun:
    """MGVQ-G4 without masking: four groups of 8 channels, each with a quarter of the codes, of unit length."""
    quantizer = dataclasses.replace(online(), num_codes=1024, groups=4, code_dim=32, metric="cosine")
    return patch("patch_groups", quantizer)


def online() -> QuantizerConfig:
    """CVQ-VAE's quantizer with random anchors.

    The paper draws anchors near the code with some randomness; of its simpler rules, random ones collapse less at
    this size.
    """
    return QuantizerConfig(codebook="online", anchor="random", commitment_weight=0.25, codebook_weight=1.0)


def patch(recipe: str, quantizer: QuantizerConfig) -> TokenizerRun:
    """The patch tokenizer with a quantizer."""
    return TokenizerRun(recipe=recipe, network=PatchConfig(), quantizer=quantizer)
