"""VQGAN-LC (Zhu et al., 2024): many frozen codes, features of a vision network, behind a trained projector."""

from __future__ import annotations

import dataclasses

from models.networks import vqgan as network
from models.recipes.vqgan import factorized, lc_training, pocket
from models.tokenizers.config import QuantizerConfig
from models.training.tokenizer_run import TokenizerRun


def vqgan_lc() -> TokenizerRun:
    """VQGAN-LC f16: 100,000 codes behind a linear projector to 8 dimensions, from codebook.npy.

    ``python -m models.extract_features IMAGENET --out features`` and ``python -m vqkernels.kmeans features --k 100000
    --out codebook.npy`` make the file. ``--features clip`` clusters training crops.
    """
    return lc_training("vqgan_lc", network.vqgan_f16(), _frozen(8))


def vqgan_lc_f8() -> TokenizerRun:
    """The same at 32x32 tokens of 4 dimensions, as released."""
    return lc_training("vqgan_lc_f8", network.vqgan_f8(), _frozen(4))


def vqgan_lc_pocket() -> TokenizerRun:
    """VQGAN-LC at 64 pixels and 8x8 tokens: 4096 codes of EfficientNet's features of the training photographs.

    The projector starts matched to the encoder's first outputs, for want of time to bring them together.
    """
    quantizer = dataclasses.replace(
        _frozen(8), num_codes=4096, features="efficientnet_lite0", features_size=128, init="matched"
    )
    return pocket("vqgan_lc_pocket", network.vqgan_pocket(), quantizer)


def _frozen(code_dim: int) -> QuantizerConfig:
    return dataclasses.replace(
        factorized(), codebook="frozen", num_codes=100_000, code_dim=code_dim, features="codebook.npy"
    )
