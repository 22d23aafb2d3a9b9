"""SEMANTICIST (Wen et al., 2025): ordered concept tokens by nested prefixes, decoded by diffusion.

The published tokenizer is continuous. With a quantizer it is ours: flat or grouped codes of the tokens, or, as
VQGAN-LC freezes its codes, centres of the tokens of a continuous training. Where paper and released code differ, the
decoder reads tokens beside patches and a prefix has at least one token, as in the code; weights do not decay, as in
the paper.
"""

from __future__ import annotations

import dataclasses

from models.networks.concept_dit import ConceptDiTConfig
from models.networks.dit import DiTConfig, dit_l, dit_xl
from models.networks.vit import ConceptEncoderConfig, concept_encoder_pocket
from models.priors.diffusion import DDPMConfig, FlowConfig
from models.priors.diffusion_sampling import DiffusionSamplingConfig
from models.recipes.vqgan import IMAGENET, PAPER
from models.tokenizers.config import QuantizerConfig
from models.tokenizers.latent_space import AutoencoderSpaceConfig, PatchSpaceConfig
from models.training.concept_run import ConceptLossConfig, ConceptRun, ConceptStage
from models.training.config import OptimizerConfig


def semanticist() -> ConceptRun:
    """SEMANTICIST on ImageNet: 256 tokens of 16 channels, DiT-L/2 on the latents of MAR's autoencoder, REPA."""
    return _paper("semanticist", dit_l())


def semanticist_xl() -> ConceptRun:
    """The same with DiT-XL/2."""
    return _paper("semanticist_xl", dit_xl())


def semanticist_pocket() -> ConceptRun:
    """SEMANTICIST at 64 pixels: 16 tokens of 16 channels, a small DiT/2 on 24 components of 8x8 patches.

    What is other than in the paper, and why. A decoder of minutes predicts neither noise nor velocities, for which
    its 96 channels would need room too, but the latents, and most often at high noise, where it needs the tokens.
    The latents are components of pixels under one scale: the loss is an error of pixels, and noise hides details
    before it hides the whole. Every step of sampling after the first adds what it draws to the decoder's mean: there
    are two. Positions of the encoder start as large as the patches, else all tokens look everywhere for long. Street
    scenes, drawn once and kept: of the few embedded photographs a decoder learns those it is shown. Nesting starts
    early.
    """
    optimizer = OptimizerConfig(kind="adamw", lr=2e-3, betas=(0.9, 0.95), warmup_steps=30, max_grad_norm=3.0)
    stage = ConceptStage(
        steps=600,
        batch_size=16,
        ema_decay=0.98,
        loss=ConceptLossConfig(nested_start=61),
        optimizer=optimizer,
    )
    dit = DiTConfig(layers=3, width=96, heads=4, learned_sigma=False)
    return ConceptRun(
        recipe="semanticist_pocket",
        encoder=concept_encoder_pocket(),
        decoder=ConceptDiTConfig(dit=dit),
        space=PatchSpaceConfig(whiten=False),
        process=FlowConfig(predicts="data", logit_mean=-1.0),
        sampling=DiffusionSamplingConfig(method="euler", steps=2),
        stage=stage,
        data="scenes:length=1280,size=64",
        val_every=200,
    )


def semanticist_vq_pocket() -> ConceptRun:
    """The same with 1024 codes of 16 dimensions for the tokens, re-anchored as in CVQ-VAE."""
    quantizer = QuantizerConfig(
        codebook="online",
        num_codes=1024,
        code_dim=16,
        anchor="random",
        commitment_weight=0.25,
        codebook_weight=1.0,
    )
    return dataclasses.replace(semanticist_pocket(), recipe="semanticist_vq_pocket", quantizer=quantizer)


def semanticist_groups_pocket() -> ConceptRun:
    """The same with 4 groups of 256 codes of 4 dimensions for each token, as MGVQ divides a vector."""
    run = semanticist_vq_pocket()
    assert run.quantizer is not None
    quantizer = dataclasses.replace(run.quantizer, num_codes=256, groups=4)
    return dataclasses.replace(run, recipe="semanticist_groups_pocket", quantizer=quantizer)


def semanticist_lc_pocket() -> ConceptRun:
    """Continuous first; then the encoder is frozen, centres of its tokens become codes, and the decoder goes on."""
    run = semanticist_pocket()
    quantizer = QuantizerConfig(
        codebook="frozen", num_codes=2048, code_dim=16, features="tokens", init="matched", codebook_weight=0.33
    )
    last = dataclasses.replace(
        run.stage,
        name="quantized",
        steps=200,
        trains=("quantizer", "decoder"),
        loss=ConceptLossConfig(),
        optimizer=dataclasses.replace(run.stage.optimizer, lr=1e-3),
        quantizer=quantizer,
    )
    first = dataclasses.replace(run.stage, name="continuous", steps=400)
    return dataclasses.replace(run, recipe="semanticist_lc_pocket", stage=first, then=(last,))


def _paper(recipe: str, dit: DiTConfig) -> ConceptRun:
    """400 epochs of 2048 images, 100 of them warm-up; nesting starts after 50."""
    epoch = IMAGENET // 2048  # steps
    stage = ConceptStage(
        steps=400 * epoch,
        batch_size=2048,
        ema_decay=0.999,
        crop="resize",
        loss=ConceptLossConfig(nested_start=50 * epoch + 1, repa_weight=1.0),
        optimizer=OptimizerConfig(
            kind="adamw", lr=2e-4, betas=(0.9, 0.95), warmup_steps=100 * epoch, max_grad_norm=3.0
        ),
    )
    return ConceptRun(
        recipe=recipe,
        encoder=ConceptEncoderConfig(),
        decoder=ConceptDiTConfig(dit=dit, repa_layer=8),
        space=AutoencoderSpaceConfig(path="xwen99/mar-vae-kl16", scale=0.2325),
        process=DDPMConfig(),
        sampling=DiffusionSamplingConfig(method="ancestral", steps=250, guidance=3.0),
        stage=stage,
        mixed_precision="bf16",
        **PAPER,
    )
