"""What training a prior is: its own loss, on codes or latents of the classes they have."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from models.data.source import Source
from models.data.transforms import Transform
from models.metrics.code_entropy import NeighbourCounts
from models.priors.concept import ConceptPrior
from models.priors.diffusion import DiffusionPrior
from models.training.checkpoint import load_weights
from models.training.engine import BuildTask
from models.training.prior_data import CheckedView, open_codes, scaled_latents, set_code_vectors
from models.training.prior_run import Prior, PriorRun, build_prior
from models.training.task import Batch, Look, Loss

_COUNTED = 4096  # training samples whose codes are counted


class PriorTask:
    """A prior of codes or of latents."""

    unit = "samples"
    timed = None

    def __init__(self, config: PriorRun, number: int, prior: Prior) -> None:
        self.stage, self._config = config.stages[number], config
        self.model: Prior = prior
        self.players: dict[str, nn.Module] = {"model": prior}
        shape = config.shape
        self.tokens = shape.length * shape.groups
        self._counts: list[NeighbourCounts] | None = None  # one of each group
        self._moments: tuple[torch.Tensor, torch.Tensor] | None = None  # mean and variance of each channel

    def data(self, split: str) -> tuple[Source, Transform]:
        info = self._config.codes
        assert info is not None
        view = CheckedView(num_codes=info.num_codes, num_classes=len(info.labels))
        return open_codes(self._config.data, split), view

    def loss(self, player: str, batch: Batch, part: int, step: int) -> Loss | None:
        terms = dict(self.players["model"](*self._inputs(batch)))
        return Loss(terms.pop("loss"), terms)

    def look(self, batch: Batch) -> Look:
        """Held-out loss; its ratio to what counting says of the same codes, or the best Gaussian of the latents."""
        device = next(iter(batch.values())).device
        # the same noise and the same masks at every look
        terms = self.model(*self._inputs(batch), torch.Generator(device).manual_seed(0))
        values = {f"val_{name}": float(value) for name, value in terms.items()}
        if "nll" in terms:
            unigram, bigram = self._counted(batch["codes"].cpu().numpy())
            values |= {
                "val_unigram_ratio": values["val_nll"] / unigram,
                "val_bigram_ratio": values["val_nll"] / bigram,
            }
        if self._config.of_latents:
            error = values.get("val_mse", values["val_loss"])
            values["val_gaussian_ratio"] = error / self._gaussian_error(self._inputs(batch)[0])
        return Look(values, None)

    def statistics(self) -> dict[str, float]:
        return {}

    def headline(self, line: Mapping[str, float]) -> str:
        held_out = f"  held-out {line['val_loss']:.3f}" if "val_loss" in line else ""
        return (
            f"{line['samples_per_second']:.0f} samples/s  {line['tokens_per_second']:.0f} tokens/s  "
            f"loss {line['loss']:.3f}{held_out}"
        )

    def _inputs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        labels = batch["label"] if self._config.shape.num_classes else None
        if self._config.of_latents:
            return scaled_latents(self._config, batch["latents"]), labels
        return batch["codes"], labels

    def _gaussian_error(self, values: torch.Tensor) -> float:
        """The same error, at the same times and noise, of who knows mean and variance of each channel."""
        assert isinstance(self.model, DiffusionPrior | ConceptPrior)
        if self._moments is None:
            source = open_codes(self._config.data, "train")
            rows = np.concatenate([source.read(i).image for i in range(min(len(source), _COUNTED))])  # all views
            latents = scaled_latents(self._config, torch.from_numpy(rows).float())
            training = self.model.targets(latents).double()
            over = [d for d in range(training.ndim) if d != 1]
            self._moments = training.mean(over).to(values), training.var(over).to(values)  # [C], [C]
        targets, process = self.model.targets(values), self.model.process
        terms = process.terms(
            process.gaussian(*self._moments), targets, torch.Generator(values.device).manual_seed(0)
        )
        return float(terms.get("mse", terms["loss"]).mean())

    def _counted(self, codes: np.ndarray) -> tuple[float, float]:
        """Nats per held-out code from its frequency in training, and from that of its pair with the one before."""
        shape = self._config.shape
        if self._counts is None:
            source = open_codes(self._config.data, "train")
            training = np.concatenate(
                [source.read(i).image for i in range(min(len(source), _COUNTED))]
            )  # [S, *shape]
            self._counts = [NeighbourCounts(part, shape.num_codes) for part in _by_group(training, shape.groups)]
        scored = list(zip(self._counts, _by_group(codes, shape.groups), strict=True))
        return (
            float(np.mean([counts.unigram_nll(part) for counts, part in scored])),
            float(np.mean([counts.bigram_nll(part) for counts, part in scored])),
        )


def prior_tasks(config: PriorRun) -> BuildTask:
    """How the engine gets the task of each stage of a prior's run."""

    def build(
        number: int, weights: Mapping[str, torch.Tensor] | None, grown: bool, device: torch.device
    ) -> PriorTask:
        prior = build_prior(config)
        if weights is None:
            set_code_vectors(prior, config)
        else:
            load_weights(prior, weights)
        return PriorTask(config, number, prior)

    return build


def _by_group(codes: np.ndarray, groups: int) -> list[np.ndarray]:  # [S, *shape] -> G times [S, L]
    flat = codes.reshape(len(codes), -1, groups)
    return [flat[:, :, group] for group in range(groups)]
