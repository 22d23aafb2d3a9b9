"""SeQ-GAN (Gu et al., 2022): a tokenizer for its prior first, for its pixels second.

Phase 1 trains all of it with a semantic perceptual loss; phase 2 freezes encoder and codebook, so that the codes of
every image stay what they are, and trains a decoder that has grown attention with the perceptual loss of detail. The
weights of the perceptual and adversarial terms are not printed: 0.1 each, as MaskGIT and ViT-VQGAN have them. The
entropy of the mean assignment is raised, by weight 0.01: the sign printed in the paper would lower it.
"""

from __future__ import annotations

import dataclasses

from models.networks.discriminators import StyleGAN2Config, stylegan2_pocket
from models.networks.maskgit_conv import MaskGITConvConfig, maskgit_conv_pocket
from models.recipes.vqgan import PAPER
from models.tokenizers.config import QuantizerConfig
from models.training.config import OptimizerConfig
from models.training.tokenizer_run import TokenizerLossConfig, TokenizerRun, TokenizerStage


def seqgan() -> TokenizerRun:
    """SeQ-GAN on ImageNet: 1024 codes of 256 dimensions, 500,000 steps, then 200,000 of the decoder."""
    first = TokenizerStage(
        name="semantic",
        steps=500_000,
        batch_size=256,
        image_size=256,
        crop="resize",
        loss=TokenizerLossConfig(
            perceptual_weight=0.1,
            perceptual="vgg16",
            perceptual_alpha=1.0,
            disc_start=1,
            disc_weight=0.1,
            disc_adaptive=False,
            disc_loss="logistic",
            disc=StyleGAN2Config(),
            r1_weight=10.0,
        ),
        optimizer=OptimizerConfig(lr=1e-4, betas=(0.9, 0.99), final_lr=5e-5),
    )
    quantizer = QuantizerConfig(
        codebook="learned",
        num_codes=1024,
        code_dim=256,
        commitment_weight=0.25,
        codebook_weight=1.0,
        entropy_weight=0.01,
    )
    second = OptimizerConfig(lr=5e-5, betas=(0.5, 0.9), schedule="constant")
    run = _phases("seqgan", MaskGITConvConfig(), quantizer, first, second, steps=200_000, batch_size=128)
    return dataclasses.replace(run, **PAPER)


def seqgan_pocket() -> TokenizerRun:
    """SeQ-GAN at 64 pixels and 8x8 tokens: 1024 codes, EfficientNet's features in place of VGG's.

    Codes have 8 dimensions and unit length, and the entropy a temperature of 0.1: squared distances of 256 dimensions
    at temperature 1 take far longer to spread the codes than this training is. The late features of EfficientNet are
    large: at the weight of 0.1 pixels stayed below the mean colour of each crop.
    """
    first = TokenizerStage(
        name="semantic",
        steps=400,
        batch_size=8,
        loss=TokenizerLossConfig(
            perceptual_weight=0.02,
            perceptual_alpha=1.0,
            disc_start=351,
            disc_weight=0.01,
            disc_adaptive=False,
            disc_loss="logistic",
            disc=stylegan2_pocket(),
            r1_weight=1.0,
        ),
        optimizer=OptimizerConfig(lr=5e-4, betas=(0.9, 0.99), warmup_steps=20, final_lr=1e-4),
    )
    quantizer = QuantizerConfig(
        codebook="learned",
        num_codes=1024,
        code_dim=8,
        metric="cosine",
        commitment_weight=0.25,
        codebook_weight=1.0,
        entropy_weight=0.01,
        entropy_temperature=0.1,
    )
    second = OptimizerConfig(lr=2e-4, betas=(0.9, 0.99))
    return _phases("seqgan_pocket", maskgit_conv_pocket(), quantizer, first, second, steps=150, batch_size=8)


def _phases(
    recipe: str,
    network: MaskGITConvConfig,
    quantizer: QuantizerConfig,
    first: TokenizerStage,
    optimizer: OptimizerConfig,
    *,
    steps: int,
    batch_size: int,
) -> TokenizerRun:
    """The second phase trains the decoder alone, enlarged, towards detail."""
    second = dataclasses.replace(
        first,
        name="detail",
        steps=steps,
        batch_size=batch_size,
        trains=("decoder",),
        network=dataclasses.replace(network, attention_pairs=1),
        loss=dataclasses.replace(first.loss, perceptual_alpha=0.0, disc_start=1),
        optimizer=optimizer,
    )
    return TokenizerRun(recipe=recipe, network=network, quantizer=quantizer, stage=first, then=(second,))
