"""MGVQ (Jia et al., 2025): groups with codebooks of their own, nested masking, then a stage without masks.

No training code of it is public. Network, quantizer and re-anchoring follow the released inference code; losses and
optimizer the paper; the rate of the second stage is the 1e-5 that the paper prints, that of the first the 1e-4 of
LlamaGen, which the paper says it follows. The odds of 8 groups are not printed: all prefixes but the whole share 0.3.
"""

from __future__ import annotations

import dataclasses

from models.networks import vqgan
from models.networks.dcae import DCAEConfig, dcae_f8, dcae_f16, dcae_f32, dcae_pocket
from models.recipes.vqgan import IMAGENET, PAPER
from models.tokenizers.config import Network, QuantizerConfig
from models.training.config import OptimizerConfig
from models.training.tokenizer_run import TokenizerLossConfig, TokenizerRun, TokenizerStage

_TOTAL = {2: 65536, 4: 32768, 8: 16384, 16: 16384}  # codes of all groups together


def mgvq_g4() -> TokenizerRun:
    """MGVQ-G4 f16: 4 groups of 8192 codes of 8 dimensions, DC-AE."""
    return _paper("mgvq_g4", dcae_f16(), 4)


def mgvq_g8() -> TokenizerRun:
    """MGVQ-G8 f16: 8 groups of 2048 codes of 4 dimensions, DC-AE."""
    return _paper("mgvq_g8", dcae_f16(), 8)


def mgvq_g4_f8() -> TokenizerRun:
    """MGVQ-G4 f8."""
    return _paper("mgvq_g4_f8", dcae_f8(), 4)


def mgvq_g8_f8() -> TokenizerRun:
    """MGVQ-G8 f8."""
    return _paper("mgvq_g8_f8", dcae_f8(), 8)


def mgvq_g8_f32() -> TokenizerRun:
    """MGVQ-G8 f32."""
    return _paper("mgvq_g8_f32", dcae_f32(), 8)


def mgvq_g2() -> TokenizerRun:
    """The paper's sweep over groups: 2 groups of 16 dimensions, f16."""
    return _paper("mgvq_g2", dcae_f16(), 2)


def mgvq_g16() -> TokenizerRun:
    """The paper's sweep over groups: 16 groups of 2 dimensions, f16."""
    return _paper("mgvq_g16", dcae_f16(), 16)


def mgvq_vqgan() -> TokenizerRun:
    """MGVQ-G4 on VQGAN's network, as the paper's text describes its backbone."""
    network = dataclasses.replace(vqgan.vqgan_f16(), conv_groups=4)
    return dataclasses.replace(_paper("mgvq_vqgan", dcae_f16(), 4), network=network)


def mgvq_pocket() -> TokenizerRun:
    """MGVQ-G4 at 64 pixels and 8x8 tokens: 4 groups of 256 codes of 8 dimensions, a small DC-AE.

    300 steps with masks, 100 without, each with larger steps than the paper's.
    """
    loss = dataclasses.replace(_loss(), perceptual_weight=0.1, perceptual="efficientnet_lite0", disc_start=None)
    optimizer = OptimizerConfig(kind="adamw", lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05, max_grad_norm=1.0)
    stage = TokenizerStage(name="masked", steps=300, batch_size=8, loss=loss, optimizer=optimizer)
    return _stages("mgvq_pocket", _grouped(dcae_pocket(), 4), grouped(4, 1024), stage, 100, 3e-4)


def grouped(groups: int, total: int, code_dim: int = 32) -> QuantizerConfig:
    """MGVQ's quantizer: codes of unit length, re-anchored at probable vectors; prefixes are kept with its odds."""
    early = 0.1 if groups == 4 else 0.3 / (groups - 1)
    return QuantizerConfig(
        codebook="online",
        num_codes=total // groups,
        groups=groups,
        code_dim=code_dim,
        metric="cosine",
        anchor="probabilistic",
        commitment_weight=0.25,
        codebook_weight=1.0,
        nested_keep_probs=(*[early] * (groups - 1), 1 - early * (groups - 1)),
    )


def _paper(recipe: str, network: DCAEConfig, groups: int) -> TokenizerRun:
    epoch = IMAGENET // 128  # steps
    optimizer = OptimizerConfig(
        kind="adamw", lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, schedule="constant", max_grad_norm=1.0
    )
    stage = TokenizerStage(
        name="masked",
        steps=40 * epoch,
        batch_size=128,
        image_size=256,
        crop="resize",
        loss=_loss(),
        optimizer=optimizer,
    )
    run = _stages(recipe, _grouped(network, groups), grouped(groups, _TOTAL[groups]), stage, 4 * epoch, 1e-5)
    return dataclasses.replace(run, mixed_precision="bf16", **PAPER)


def _loss() -> TokenizerLossConfig:
    return TokenizerLossConfig(
        l1_weight=0.0,
        l2_weight=2.0,
        charbonnier_weight=1.0,
        perceptual_weight=1.0,
        perceptual="lpips",
        disc_start=20_000,
        disc_weight=0.5,
        disc_adaptive=False,
    )


def _stages(
    recipe: str, network: Network, quantizer: QuantizerConfig, stage: TokenizerStage, steps: int, lr: float
) -> TokenizerRun:
    """The masked stage, then a shorter one in which all groups are always there."""
    loss = stage.loss if stage.loss.disc_start is None else dataclasses.replace(stage.loss, disc_start=1)
    whole = dataclasses.replace(
        stage,
        name="whole",
        steps=steps,
        loss=loss,
        optimizer=dataclasses.replace(stage.optimizer, lr=lr),
        quantizer=dataclasses.replace(quantizer, nested_keep_probs=(*[0.0] * (quantizer.groups - 1), 1.0)),
    )
    return TokenizerRun(recipe=recipe, network=network, quantizer=quantizer, stage=stage, then=(whole,))


def _grouped(network: DCAEConfig, groups: int) -> DCAEConfig:
    return dataclasses.replace(network, conv_groups=groups)
