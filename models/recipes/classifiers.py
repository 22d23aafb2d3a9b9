"""VQGAN-LC's classification: a vision transformer on token maps tells the class.

The paper says that MAE's ViT-B is finetuned and prints no more; the rest is MAE's finetuning, without what mixes
images (mixup, cutmix), as codes have no mean. What the network reads of a code is not said either: the tokenizer's
vector, which a linear layer widens.
"""

from __future__ import annotations

from models.networks.vit import ViTConfig, vit_pocket
from models.pretrained.huggingface import VIT_MAE
from models.recipes.vqgan import IMAGENET, PAPER
from models.training.classifier_run import ClassifierRun
from models.training.config import OptimizerConfig, StageConfig

_CODES = "codes:codes"  # where models.extract_codes is told to put them


def token_classifier() -> ClassifierRun:
    """ViT-B of MAE on 16x16 codes: 100 epochs of batch 1024, 5 of them warm-up, rates that fall by 0.65 a layer."""
    steps, warmup = (epochs * IMAGENET // 1024 for epochs in (100, 5))
    optimizer = OptimizerConfig(
        kind="adamw",
        lr=5e-4 * 1024 / 256,
        betas=(0.9, 0.999),
        weight_decay=0.05,
        warmup_steps=warmup,
        final_lr=1e-6,
        layer_decay=0.65,
    )
    stage = StageConfig(steps=steps, batch_size=1024, optimizer=optimizer)
    return ClassifierRun(
        recipe="token_classifier",
        data=_CODES,
        network=ViTConfig(),
        mae=VIT_MAE.file,
        stage=stage,
        mixed_precision="bf16",
        val_samples=1024,
        **PAPER,
    )


def token_classifier_pocket() -> ClassifierRun:
    """Four layers of 128 on 8x8 codes, from random weights, in minutes on two cores."""
    optimizer = OptimizerConfig(
        kind="adamw", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05, warmup_steps=50, max_grad_norm=1.0
    )
    stage = StageConfig(steps=600, batch_size=32, optimizer=optimizer)
    return ClassifierRun(
        recipe="token_classifier_pocket", data=_CODES, network=vit_pocket(), stage=stage, val_samples=256
    )
