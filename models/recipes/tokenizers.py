"""Recipes: functions that return a full training config.

The five ``patch_*`` recipes are one small tokenizer with five quantizers, for two cores. The ``vqgan_*`` ones
are the convolutional tokenizer at the sizes of the papers and, as ``vqgan_tiny``, at a size for two cores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from models.networks.patch import PatchConfig
from models.networks.vqgan import VQGANConfig
from models.tokenizers.config import QuantizerConfig
from models.training.config import LossConfig, OptimizerConfig, TrainConfig


def patch_fc() -> TrainConfig:
    """VQGAN-FC: few dimensions per code, codes trained by gradient."""
    return _patch("patch_fc", QuantizerConfig(codebook="learned", commitment_weight=1.0, codebook_weight=0.33))


def patch_ema() -> TrainConfig:
    """VQGAN-EMA: codes follow a running mean of their vectors, so there is only a commitment loss."""
    return _patch("patch_ema", QuantizerConfig(codebook="ema", commitment_weight=1.0, codebook_weight=0.0))


def patch_cvq() -> TrainConfig:
    """CVQ-VAE: codes trained by gradient; those out of use jump to encoder vectors of the batch."""
    return _patch("patch_cvq", _online())


def patch_lc() -> TrainConfig:
    """VQGAN-LC: frozen codes, k-means of training patches, seen through a trained linear projector."""
    quantizer = QuantizerConfig(codebook="frozen", commitment_weight=1.0, codebook_weight=0.33, init="matched")
    return _patch("patch_lc", quantizer)


def patch_groups() -> TrainConfig:
    """MGVQ-G4 without masking: four groups of 8 channels, each with a quarter of the codes, of unit length."""
    quantizer = dataclasses.replace(_online(), num_codes=1024, groups=4, code_dim=32, metric="cosine")
    return _patch("patch_groups", quantizer)


def vqgan_f16() -> TrainConfig:
    """VQGAN-FC at 256 pixels and 16x16 tokens as the VQGAN-LC paper trains it, less the perceptual loss."""
    return _vqgan("vqgan_f16", VQGANConfig(), code_dim=8)


def vqgan_f8() -> TrainConfig:
    """The same at 32x32 tokens."""
    return _vqgan("vqgan_f8", VQGANConfig(multipliers=(1, 2, 2, 4), attention_levels=(3,)), code_dim=4)


def vqgan_tiny() -> TrainConfig:
    """A VQGAN of a million weights at 64 pixels and 8x8 tokens, codes as in CVQ-VAE."""
    network = VQGANConfig(
        base_channels=32, multipliers=(1, 1, 2, 2), res_blocks=1, attention_levels=(3,), latent_channels=64
    )
    quantizer = dataclasses.replace(_online(), num_codes=1024)
    return TrainConfig(recipe="vqgan_tiny", network=network, quantizer=quantizer, batch_size=8)


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    recipe.__name__: recipe
    for recipe in (patch_fc, patch_ema, patch_cvq, patch_lc, patch_groups, vqgan_f16, vqgan_f8, vqgan_tiny)
}


def with_num_codes(config: TrainConfig, total: int) -> TrainConfig:
    """The same recipe with ``total`` codes, divided among its groups."""
    groups = config.quantizer.groups
    if total % groups:
        raise ValueError(f"total: expected a multiple of {groups} groups, got {total}")
    quantizer = dataclasses.replace(config.quantizer, num_codes=total // groups)
    return dataclasses.replace(config, quantizer=quantizer)


def _online() -> QuantizerConfig:
    # the paper draws anchors near the code with some randomness; of its simpler rules, random ones collapse less here
    return QuantizerConfig(codebook="online", anchor="random", commitment_weight=0.25, codebook_weight=1.0)


def _patch(recipe: str, quantizer: QuantizerConfig) -> TrainConfig:
    return TrainConfig(recipe=recipe, network=PatchConfig(), quantizer=quantizer)


def _vqgan(recipe: str, network: VQGANConfig, code_dim: int) -> TrainConfig:
    """20 epochs of ImageNet, the first 5 of them warm-up; the discriminator joins half way."""
    epoch = 1_281_167 // 256  # steps
    return TrainConfig(
        recipe=recipe,
        network=network,
        quantizer=QuantizerConfig(
            codebook="learned",
            num_codes=16384,
            code_dim=code_dim,
            commitment_weight=1.0,
            codebook_weight=0.33,
        ),
        loss=LossConfig(quantizer_weight=0.1, disc_start=50_000, disc_weight=0.1, disc_layers=2),
        optimizer=OptimizerConfig(lr=5e-4, betas=(0.5, 0.9), eps=1e-7, warmup_steps=5 * epoch),
        image_size=256,
        batch_size=256,
        steps=20 * epoch,
        log_every=50,
        val_every=1000,
        checkpoint_every=1000,
    )
