"""The training of a prior, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from models.config_json import Flat, Hidden
from models.errors import UserError, first_line
from models.networks.code_shape import CodeShape
from models.priors.autoregressive import AutoregressiveConfig, AutoregressivePrior
from models.priors.concept import ConceptConfig, ConceptPrior
from models.priors.diffusion import DiffusionConfig, DiffusionPrior
from models.priors.grouped import GroupedConfig, GroupedPrior
from models.priors.masked import MaskedConfig, MaskedPrior
from models.priors.video import VideoConfig, VideoPrior
from models.training.checkpoint import load_weights
from models.training.config import RunConfig, StageConfig

PriorConfig = AutoregressiveConfig | MaskedConfig | GroupedConfig | VideoConfig | DiffusionConfig | ConceptConfig
Prior = AutoregressivePrior | MaskedPrior | GroupedPrior | VideoPrior | DiffusionPrior | ConceptPrior


@dataclass(frozen=True, kw_only=True)
class CodeInfo:
    """What the codes or latents of a folder are."""

    tokenizer: str  # fingerprint of the encoder and quantizer that made them
    num_codes: int  # codes of each group
    groups: int  # indices per position
    code_dim: int  # width of the vector of a position, all groups together
    shape: tuple[int, ...]  # of one sample: [h, w], [T, h, w], with groups [..., G]; latents [D, h, w] or [T, D]
    labels: tuple[str, ...] = ()  # names of the classes

    def code_shape(self, num_classes: int) -> CodeShape:
        """What a network of codes has to know of them."""
        sides = self.shape[:-1] if self.groups > 1 else self.shape
        return CodeShape(
            num_codes=self.num_codes,
            grid=(sides[-2], sides[-1]),
            groups=self.groups,
            frames=sides[0] if len(sides) == 3 else 1,
            code_dim=self.code_dim,
            num_classes=num_classes,
        )


@dataclass(frozen=True, kw_only=True)
class PriorRun(RunConfig):
    """A complete training of a prior. Two equal configs give the same bits on the same machine."""

    kind: Hidden[Literal["prior"]] = "prior"
    data: str  # "codes:DIR" or "latents:DIR", as models.extract_codes makes them
    tokenizer: str | None = None  # run folder; codes of another tokenizer are refused
    prior: Annotated[Flat[PriorConfig], tyro.conf.AvoidSubcommands]
    stage: Flat[StageConfig] = StageConfig()
    then: Hidden[tuple[StageConfig, ...]] = ()  # further stages
    conditional: bool = True  # use the classes, where the codes have any
    latent_scale: float | None = None  # factor on latents; None gives them unit spread (the papers: 1)
    codes: Hidden[CodeInfo | None] = None  # what the data are, filled in when training starts

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_scale is not None and not self.latent_scale > 0:
            raise ValueError(f"latent_scale: expected more than 0, got {self.latent_scale}")

    @property
    def stages(self) -> tuple[StageConfig, ...]:
        return (self.stage, *self.then)

    @property
    def of_latents(self) -> bool:
        """Whether the prior models latents, not codes."""
        return isinstance(self.prior, DiffusionConfig | ConceptConfig)

    @property
    def shape(self) -> CodeShape:
        """What the network has to know of the codes."""
        info = self.codes
        assert info is not None
        num_classes = len(info.labels) if self.conditional else 0
        if self.of_latents:
            dim, *grid = info.shape if len(info.shape) == 3 else (info.shape[1], 1, info.shape[0])
            if isinstance(self.prior, ConceptConfig):
                grid = [1, grid[0] * grid[1]]  # a sequence
            return CodeShape(num_codes=0, grid=(grid[0], grid[1]), code_dim=dim, num_classes=num_classes)
        return info.code_shape(num_classes)


def build_prior(config: PriorRun) -> Prior:
    """The prior of a run, with fresh weights."""
    shape, prior = config.shape, config.prior
    match prior:
        case DiffusionConfig():
            return DiffusionPrior(prior, channels=shape.code_dim, grid=shape.grid, num_classes=shape.num_classes)
        case ConceptConfig():
            return ConceptPrior(prior, shape)
        case MaskedConfig():
            return MaskedPrior(prior, shape)
        case GroupedConfig():
            return GroupedPrior(prior, shape)
        case VideoConfig():
            return VideoPrior(prior, shape)
        case AutoregressiveConfig():
            return AutoregressivePrior(prior, shape)


def rebuild_prior(config: PriorRun, weights: Mapping[str, torch.Tensor], source: Path | str) -> Prior:
    """The prior of a run with these weights; weights of another one are an error of one line."""
    prior = build_prior(config)
    try:
        load_weights(prior, weights)
    except RuntimeError as error:
        raise UserError(f"{source}: weights do not fit the config ({first_line(error)})") from error
    return prior
