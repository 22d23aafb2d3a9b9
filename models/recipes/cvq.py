"""CVQ-VAE and CVQGAN: codes out of use move to encoder vectors of the batch (Zheng and Vedaldi, 2023)."""

from __future__ import annotations

import dataclasses

from models.networks import vqgan as network
from models.recipes.vqgan import pocket, vqgan
from models.tokenizers.config import QuantizerConfig
from models.training.tokenizer_run import TokenizerRun


def cvq() -> TokenizerRun:
    """CVQGAN f16: VQGAN's training with 1024 codes of 256 dimensions, re-anchored."""
    return dataclasses.replace(vqgan(), recipe="cvq", quantizer=reanchored(1024, 256))


def cvq_pocket() -> TokenizerRun:
    """CVQGAN at 64 pixels and 8x8 tokens: 1024 codes of 8 dimensions."""
    return pocket("cvq_pocket", network.vqgan_pocket(), reanchored(1024, 8))


def reanchored(num_codes: int, code_dim: int) -> QuantizerConfig:
    """CVQ-VAE's quantizer: an anchor is drawn with a probability that falls with its distance to the code."""
    return QuantizerConfig(
        codebook="online",
        num_codes=num_codes,
        code_dim=code_dim,
        anchor="probabilistic",
        commitment_weight=0.25,
        codebook_weight=1.0,
    )
