"""What training a classifier of codes is: cross entropy, on codes of images with classes.

B batch, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from models.data.loader import Loader
from models.data.source import Source
from models.data.transforms import Transform
from models.errors import UserError, first_line
from models.networks.token_classifier import TokenClassifier
from models.networks.vit import load_mae
from models.pretrained.mae import mae_weights
from models.training.classifier_run import ClassifierRun, rebuild_classifier
from models.training.engine import BuildTask
from models.training.prior_data import (
    CheckedView,
    check_same,
    check_tokenizer,
    describe_both,
    open_codes,
    read_codebook,
)
from models.training.runs import load_classifier_config
from models.training.task import Batch, Look, Loss


def describe_classified(config: ClassifierRun) -> ClassifierRun:
    """The same training, saying what its data are; raises where classifier, tokenizer and data do not fit."""
    if not config.data.startswith("codes:"):
        raise UserError(f"data: expected 'codes:DIR', got '{config.data}'")
    info = describe_both(config.data)
    if not info.labels:
        raise UserError(f"data: expected codes of images with classes, got none in '{config.data}'")
    if config.tokenizer is not None:
        check_tokenizer(config.tokenizer, info, config.data)
    for stage in config.stages:
        if stage.start not in ("previous", "fresh"):
            check_same(load_classifier_config(stage.start).codes, stage.start, info, config.data)
    return dataclasses.replace(config, codes=info)


class ClassifierTask:
    """A vision transformer on codes."""

    unit = "samples"
    timed = None

    def __init__(self, config: ClassifierRun, number: int, classifier: TokenClassifier) -> None:
        self.stage, self._config = config.stages[number], config
        self.model = classifier
        self.players: dict[str, nn.Module] = {"model": classifier}
        self.tokens = config.shape.length

    def data(self, split: str) -> tuple[Source, Transform]:
        return open_codes(self._config.data, split), _view(self._config)

    def loss(self, player: str, batch: Batch, part: int, step: int) -> Loss | None:
        logits = self.players["model"](batch["codes"]).float()  # [B, C]
        total = F.cross_entropy(logits, batch["label"], label_smoothing=self._config.label_smoothing)
        return Loss(total, {"top1": _top1(logits.detach(), batch["label"])})

    def look(self, batch: Batch) -> Look:
        logits = self.model(batch["codes"]).float()
        loss, top1 = F.cross_entropy(logits, batch["label"]), _top1(logits, batch["label"])
        return Look({"val_loss": loss.item(), "val_top1": top1.item()}, None)

    def statistics(self) -> dict[str, float]:
        return {}

    def headline(self, line: Mapping[str, float]) -> str:
        held_out = f"  held-out {line['val_top1']:.1%}" if "val_top1" in line else ""
        return (
            f"{line['samples_per_second']:.0f} samples/s  loss {line['loss']:.3f}  top-1 {line['top1']:.1%}{held_out}"
        )


def classifier_tasks(config: ClassifierRun) -> BuildTask:
    """How the engine gets the task of each stage of a classifier's run."""

    def build(
        number: int, weights: Mapping[str, torch.Tensor] | None, grown: bool, device: torch.device
    ) -> ClassifierTask:
        if weights is not None:
            return ClassifierTask(config, number, rebuild_classifier(config, weights, config.recipe))
        classifier = TokenClassifier(config.network, config.shape)
        classifier.set_codes(read_codebook(config.data))
        if config.mae is not None:
            try:
                load_mae(classifier.vit, mae_weights(config.mae))
            except (ValueError, RuntimeError) as error:
                raise UserError(f"mae: {config.mae} does not fit the network ({first_line(error)})") from error
        return ClassifierTask(config, number, classifier)

    return build


@torch.no_grad()
def held_out_accuracy(classifier: TokenClassifier, config: ClassifierRun, batch_size: int) -> dict[str, float]:
    """Of all held-out samples: how many, top-1, and the share of the most frequent class, the best without codes."""
    source = open_codes(config.data, "val")
    device = next(classifier.parameters()).device
    right, labels = 0, []
    with Loader(source, _view(config), batch_size=batch_size, shuffle=False, device=device) as loader:
        for batch in loader:
            right += int((classifier(batch["codes"]).argmax(1) == batch["label"]).sum())
            labels.append(batch["label"].cpu().numpy())
    counts = np.bincount(np.concatenate(labels))
    count = int(counts.sum())
    return {"samples": count, "top1": right / count, "most_frequent": int(counts.max()) / count}


def _view(config: ClassifierRun) -> CheckedView:
    assert config.codes is not None
    return CheckedView(num_codes=config.codes.num_codes, num_classes=len(config.codes.labels))


def _top1(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:  # [B, C], [B] -> []
    return (logits.argmax(1) == labels).float().mean()
