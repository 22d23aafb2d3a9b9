"""SGC-VQGAN: codes that mean something (semantic online clustering and consistent semantic learning).

Neither code nor some of the constants were published: the weight of the semantic loss (0.1 here), its scale and
margin (30 and 0.35), the weight of the high level in the distance (1) and the anchor rule (probable vectors, as
CVQ-VAE's code has it) are this project's choices, and options.
"""

from __future__ import annotations

import dataclasses

from models.losses.semantic import SemanticLossConfig
from models.networks import vqgan as network
from models.recipes.vqgan import PAPER, pocket, vqgan
from models.tokenizers.config import QuantizerConfig, SemanticsConfig
from models.training.config import OptimizerConfig
from models.training.tokenizer_run import TokenizerRun, replace_stage


def sgc() -> TokenizerRun:
    """SGC-VQGAN on ImageNet or COCO, f8: 16384 codes of 8 semantic and 24 other dimensions; ``--data maps:DIR``."""
    batch = 10
    stage = dataclasses.replace(
        vqgan().stage,
        batch_size=batch,
        optimizer=OptimizerConfig(lr=4.5e-6 * batch, betas=(0.5, 0.9), schedule="constant"),
    )
    semantics = SemanticsConfig(num_classes=920)
    return TokenizerRun(
        recipe="sgc",
        network=network.vqgan_f8(),
        quantizer=_semantic(16384, 32),
        semantics=semantics,
        stage=stage,
        data="maps:imagenet-s",
        **PAPER,
    )


def sgc_nuscenes() -> TokenizerRun:
    """SGC-VQGAN on driving scenes, f16: 8192 codes, 19 classes that SegFormer sees."""
    semantics = SemanticsConfig(labels="segformer", num_classes=19)
    run = dataclasses.replace(
        sgc(), recipe="sgc_nuscenes", network=network.vqgan_f16(), quantizer=_semantic(8192, 32)
    )
    return dataclasses.replace(run, semantics=semantics, data="nuscenes")


def sgc_pocket() -> TokenizerRun:
    """SGC-VQGAN on street scenes at 64 pixels and 8x8 tokens: 512 codes of 32 dimensions, 15 classes.

    Scale and margin of the loss are smaller, easier to reach for 8 dimensions and 15 classes, and it looks at vectors
    too, which a short training gains from.
    """
    semantics = SemanticsConfig(
        num_classes=15,
        loss=SemanticLossConfig(scale=16.0, margin=0.2),
        on="codes_and_vectors",
    )
    run = pocket("sgc_pocket", network.vqgan_pocket(), _semantic(512, 32), steps=400)
    # scenes are drawn by a second process; without a discriminator: it would join after the last step
    run = replace_stage(run, loss=dataclasses.replace(run.stage.loss, disc_start=None))
    return dataclasses.replace(run, semantics=semantics, data="scenes:size=64", workers=1)


def sgc_clusters() -> TokenizerRun:
    """The same on photographs without labels: classes are clusters of EfficientNet's features."""
    run = replace_stage(sgc_pocket(), steps=600)
    semantics = dataclasses.replace(run.semantics, labels="clusters", num_classes=12)
    return dataclasses.replace(run, recipe="sgc_clusters", semantics=semantics, data="embedded", workers=0)


def _semantic(num_codes: int, code_dim: int) -> QuantizerConfig:
    return QuantizerConfig(
        codebook="semantic",
        num_codes=num_codes,
        code_dim=code_dim,
        anchor="probabilistic",
        commitment_weight=0.25,
        codebook_weight=1.0,
    )
