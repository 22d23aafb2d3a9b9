"""VQGAN as published (taming-transformers), and its codebook variants as the VQGAN-LC paper trains them.

Paper scale: 256 pixels, f16, ImageNet. Pocket scale: 64 pixels, f8, a million weights, two cores; what a pocket
recipe changes beside sizes is said in its docstring.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from models.networks import vqgan as network
from models.networks.discriminators import PatchGANConfig
from models.tokenizers.config import QuantizerConfig
from models.training.config import OptimizerConfig
from models.training.tokenizer_run import TokenizerLossConfig, TokenizerRun, TokenizerStage

IMAGENET = 1_281_167  # training images
PAPER: dict[str, Any] = {"log_every": 50, "val_every": 1000, "checkpoint_every": 1000, "workers": 8}


def vqgan() -> TokenizerRun:
    """VQGAN f16 as published: 16384 codes of 256 dimensions, LPIPS, PatchGAN from step 250,001 on."""
    batch = 12
    stage = TokenizerStage(
        steps=500_000,
        batch_size=batch,
        image_size=256,
        crop="resize",
        loss=TokenizerLossConfig(perceptual_weight=1.0, perceptual="lpips", disc_start=250_001, disc_weight=0.8),
        optimizer=OptimizerConfig(lr=4.5e-6 * batch, betas=(0.5, 0.9), schedule="constant"),
    )
    # its code weighs the term that pulls the encoder by 1 and the one that pulls the codes by beta = 0.25
    quantizer = QuantizerConfig(
        codebook="learned", num_codes=16384, code_dim=256, commitment_weight=1.0, codebook_weight=0.25
    )
    return TokenizerRun(recipe="vqgan", network=network.vqgan_f16(), quantizer=quantizer, stage=stage, **PAPER)


def vqgan_fc() -> TokenizerRun:
    """VQGAN-FC f16: codes of 8 dimensions, as the VQGAN-LC paper trains it."""
    return lc_training("vqgan_fc", network.vqgan_f16(), factorized())


def vqgan_fc_f8() -> TokenizerRun:
    """The same at 32x32 tokens of 4 dimensions."""
    quantizer = dataclasses.replace(factorized(), code_dim=4)
    return lc_training("vqgan_fc_f8", network.vqgan_f8(), quantizer)


def vqgan_ema() -> TokenizerRun:
    """VQGAN-EMA f16: codes follow running means, decay 0.99, as the VQGAN-LC paper trains it."""
    quantizer = dataclasses.replace(factorized(), codebook="ema", codebook_weight=0.0)
    return lc_training("vqgan_ema", network.vqgan_f16(), quantizer)


def factorized() -> QuantizerConfig:
    """VQGAN-FC's quantizer."""
    return QuantizerConfig(
        codebook="learned", num_codes=16384, code_dim=8, commitment_weight=1.0, codebook_weight=0.33
    )


def lc_training(recipe: str, config: network.VQGANConfig, quantizer: QuantizerConfig) -> TokenizerRun:
    """20 epochs of ImageNet, the first 5 of them warm-up; the discriminator joins half way.

    The paper does not give its batch: with 256 the discriminator's step 50,000 lies inside 20 epochs.
    """
    epoch = IMAGENET // 256  # steps
    stage = TokenizerStage(
        steps=20 * epoch,
        batch_size=256,
        image_size=256,
        crop="resize",
        loss=TokenizerLossConfig(
            quantizer_weight=0.1,
            perceptual_weight=1.0,
            perceptual="lpips",
            disc_start=50_000,
            disc_weight=0.1,
            disc=PatchGANConfig(layers=2),
        ),
        optimizer=OptimizerConfig(lr=5e-4, betas=(0.5, 0.9), eps=1e-7, warmup_steps=5 * epoch),
    )
    return TokenizerRun(recipe=recipe, network=config, quantizer=quantizer, stage=stage, **PAPER)


def vqgan_pocket() -> TokenizerRun:
    """VQGAN at 64 pixels and 8x8 tokens: 1024 codes of 8 dimensions that start as k-means of encoder outputs.

    Few dimensions and a start from data keep codes in use over a training that is a thousandth of the published one.
    """
    quantizer = QuantizerConfig(
        codebook="learned", num_codes=1024, code_dim=8, commitment_weight=1.0, codebook_weight=0.25, init="kmeans"
    )
    return pocket("vqgan_pocket", network.vqgan_pocket(), quantizer)


def pocket(recipe: str, config: Any, quantizer: QuantizerConfig, **changes: Any) -> TokenizerRun:
    """Convolutional tokenizers on two cores: 64 pixels, an ImageNet network's features, a late PatchGAN.

    Convolutions begin on patches of 4 x 4 pixels: at full resolution a step takes twice as long and learns less.
    """
    stage = TokenizerStage(
        steps=600,
        batch_size=8,
        loss=TokenizerLossConfig(
            perceptual_weight=0.1, disc_start=500, disc_weight=0.1, disc=PatchGANConfig(layers=2)
        ),
        optimizer=OptimizerConfig(lr=5e-4, betas=(0.9, 0.99), warmup_steps=20),
    )
    stage = dataclasses.replace(stage, **changes)
    return TokenizerRun(recipe=recipe, network=config, quantizer=quantizer, stage=stage)
