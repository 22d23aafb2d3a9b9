"""The training of a classifier of codes, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from models.config_json import Flat, Hidden
from models.errors import UserError, first_line
from models.networks.code_shape import CodeShape
from models.networks.token_classifier import TokenClassifier
from models.networks.vit import ViTConfig
from models.training.checkpoint import load_weights
from models.training.config import RunConfig, StageConfig
from models.training.prior_run import CodeInfo


@dataclass(frozen=True, kw_only=True)
class ClassifierRun(RunConfig):
    """A complete training of a classifier. Two equal configs give the same bits on the same machine."""

    kind: Hidden[Literal["classifier"]] = "classifier"
    data: str  # "codes:DIR", as models.extract_codes makes them of images with classes
    tokenizer: str | None = None  # run folder; codes of another tokenizer are refused
    network: Flat[ViTConfig]
    mae: str | None = None  # encoder of ViT-MAE to start from, a folder or a name on the hub; None starts at random
    label_smoothing: float = 0.1  # of the targets
    stage: Flat[StageConfig] = StageConfig()
    then: Hidden[tuple[StageConfig, ...]] = ()  # further stages
    codes: Hidden[CodeInfo | None] = None  # what the data are, filled in when training starts

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing: expected a share below 1, got {self.label_smoothing}")

    @property
    def stages(self) -> tuple[StageConfig, ...]:
        return (self.stage, *self.then)

    @property
    def shape(self) -> CodeShape:
        """What the network has to know of the codes."""
        assert self.codes is not None
        return self.codes.code_shape(len(self.codes.labels))


def rebuild_classifier(
    config: ClassifierRun, weights: Mapping[str, torch.Tensor], source: Path | str
) -> TokenClassifier:
    """The classifier of a run with these weights; weights of another one are an error of one line."""
    classifier = TokenClassifier(config.network, config.shape)
    try:
        load_weights(classifier, weights)
    except RuntimeError as error:
        raise UserError(f"{source}: weights do not fit the config ({first_line(error)})") from error
    return classifier
