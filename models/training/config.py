"""What a tokenizer training is, as data: frozen dataclasses, one comment per field, JSON in and out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from models.config_json import Hidden, parse, to_json
from models.networks.patch import PatchConfig
from models.networks.vqgan import VQGANConfig
from models.tokenizers.config import QuantizerConfig


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Terms of the training loss beside the quantizer's own weights."""

    pixel: Literal["l1", "l2"] = "l1"  # reconstruction term, mean over pixels
    quantizer_weight: float = 1.0  # factor on the whole quantizer loss
    disc_start: int | None = None  # first step of the adversarial loss; None trains without a discriminator
    disc_weight: float = 0.1  # factor on the adaptive adversarial weight
    disc_layers: int = 3  # strided layers of the PatchGAN discriminator


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam, linear warm-up, then constant or half-cosine to zero."""

    lr: float = 1e-3  # peak learning rate
    betas: tuple[float, float] = (0.9, 0.99)  # of Adam
    eps: float = 1e-8  # of Adam
    warmup_steps: int = 0  # steps of linear warm-up
    schedule: Literal["constant", "cosine"] = "cosine"  # after the warm-up
    max_grad_norm: float | None = None  # gradient clipping; None is off


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A complete training run. Two equal configs give the same bits on the same machine."""

    recipe: Hidden[str]  # name of the recipe this started from
    network: Annotated[PatchConfig | VQGANConfig, tyro.conf.AvoidSubcommands]
    quantizer: QuantizerConfig
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: str = "embedded"  # "embedded" photographs, or a folder of images
    image_size: int = 64  # pixels per side of a training crop
    batch_size: int = 32  # crops per step and process
    flip: bool = True  # mirror half of the crops
    steps: int = 600  # optimizer steps
    seed: int = 0  # of weights, crops and everything random
    log_every: int = 10  # steps per line of metrics.jsonl
    val_every: int = 100  # steps per look at held-out crops
    checkpoint_every: int = 100  # steps per checkpoint
    mixed_precision: Literal["no", "bf16"] = "no"  # autocast of the network

    def __post_init__(self) -> None:
        for name in ("image_size", "batch_size", "steps", "log_every", "val_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")

    def to_json(self) -> str:
        return to_json(self)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Inverse of :meth:`to_json`; raises ValueError on anything else."""
        config = parse(cls, json.loads(text), "config")
        assert isinstance(config, cls)
        return config
