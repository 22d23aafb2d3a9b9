"""One optimizer step of a task: its players take turns, each on all parts of the batch.

Random numbers of step t are a function of (seed, t, process), so that weights and optimizer moments are the whole
state of a training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from models.errors import UserError
from models.training.config import RunConfig
from models.training.optimizers import WeightMean, build_optimizer
from models.training.parallel import Parallel
from models.training.task import Batch, Task


class NotFiniteLossError(UserError):
    """A loss became NaN or infinite; nothing was updated by it."""


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one step of one process; step 0 is the initialisation."""
    state = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


class Stepper:
    """Owns everything of a stage that changes from step to step."""

    def __init__(self, task: Task, config: RunConfig, parallel: Parallel, device: torch.device) -> None:
        self.task, self.config, self.stage = task, config, task.stage
        self._parallel, self._device = parallel, device
        self._modules = dict(task.players)
        freeze(task.model, self.stage.trains)
        if config.checkpoint_activations:
            _recompute(task.model)
        if config.compile:
            task.model.compile()
        self._trained = {
            name: [parameter for parameter in module.parameters() if parameter.requires_grad]
            for name, module in self._modules.items()
        }
        # the optimizers must see the parameters that sharding leaves behind
        task.players = {name: parallel.wrap(module) for name, module in self._modules.items()}
        fused = not parallel.sharded
        self._optimizers = {
            name: build_optimizer(module, self.stage.optimizer, fused=fused) for name, module in self._modules.items()
        }
        decay = self.stage.ema_decay
        self._mean = None if decay is None else WeightMean(task.model, decay)

    def step(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        """Step number ``step`` of the stage, the first is 1; what each player minimised, as scalars.

        Raises:
            NotFiniteLossError: before anything was updated by the loss that is not finite.
        """
        train_mode(self.task.model, self.stage.trains)
        parts = _split(batch, self.stage.accumulate)
        values: dict[str, torch.Tensor] = {}
        for player, module in self._modules.items():
            with self._alone(player):
                values |= self._turn(player, module, parts, step)
        if self._mean is not None:
            self._mean.update(self.task.model)
        return values

    def weights(self) -> dict[str, Any]:
        """The model's parameters and buffers."""
        return self._parallel.weights(self.task.model)

    def mean(self) -> dict[str, Any] | None:
        """Their running mean."""
        if self._mean is None:
            return None
        return {
            name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            for name, tensor in self._mean.mean.items()
        }

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model in evaluation mode, with the running mean of its weights where there is one."""
        model = self.task.model
        model.eval()
        if self._mean is None:
            yield
            return
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self._mean.mean)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def settle(self) -> nn.Module:
        """The model in evaluation mode, from now on with the running mean of its weights where there is one."""
        if self._mean is not None:
            self.task.model.load_state_dict(self._mean.mean)
        return self.task.model.eval()

    def state_dict(self) -> dict[str, Any]:
        """Everything beside :meth:`weights` and :meth:`mean` that the next step depends on."""
        return {
            "optimizers": {
                name: self._parallel.optimizer_state(self._modules[name], optimizer)
                for name, optimizer in self._optimizers.items()
            },
            "modules": {name: module.state_dict() for name, module in self._modules.items() if name != "model"},
        }

    def load_state_dict(self, state: dict[str, Any], mean: dict[str, torch.Tensor] | None) -> None:
        """Inverse of :meth:`state_dict`; raises KeyError, ValueError or RuntimeError if it does not fit."""
        for name, optimizer in self._optimizers.items():
            self._parallel.load_optimizer(self._modules[name], optimizer, state["optimizers"][name])
        self.load_opponents(state)
        if self._mean is not None and mean is not None:
            self._mean.load(mean)

    def load_opponents(self, state: dict[str, Any]) -> None:
        """Weights of all players but the model, as far as the state has them."""
        weights = state.get("modules", {})
        if not isinstance(weights, Mapping):
            raise TypeError(f"modules: expected weights by name, got {type(weights).__name__}")
        for name, module in self._modules.items():
            if name in weights:
                module.load_state_dict(weights[name])

    def _turn(self, player: str, module: nn.Module, parts: list[Batch], step: int) -> dict[str, torch.Tensor]:
        optimizer, sums = self._optimizers[player], dict[str, torch.Tensor]()
        optimizer.zero_grad()
        for number, part in enumerate(parts):
            with self._parallel.accumulating(self.task.players[player], last=number == len(parts) - 1):
                with torch.autocast(self._device.type, torch.bfloat16, enabled=self.config.mixed_precision == "bf16"):
                    loss = self.task.loss(player, part, number, step)
                if loss is None:
                    return {}
                _check_finite(player, loss.total, loss.terms)
                (loss.total / len(parts)).backward()
            name = "loss" if player == "model" else player
            for key, value in {name: loss.total, **loss.terms}.items():
                sums[key] = sums.get(key, torch.zeros_like(value.detach())) + value.detach() / len(parts)
        parameters = self._trained[player]
        if self._parallel.sharded:
            parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        limit = self.stage.optimizer.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit)
        sums["grad_norm" if player == "model" else f"{player}_grad_norm"] = norm
        for group in optimizer.param_groups:
            group["lr"] = self.stage.optimizer.rate(step, self.stage.steps) * group.get("scale", 1.0)
        optimizer.step()
        return sums

    @contextmanager
    def _alone(self, player: str) -> Iterator[None]:
        """While one player moves, no gradient is computed for the parameters of the others."""
        others = [p for name, trained in self._trained.items() if name != player for p in trained]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)


def freeze(model: nn.Module, trains: tuple[str, ...]) -> None:
    """Only the named parts require gradients."""
    if trains == ("all",):
        return
    parts = dict(model.named_children())
    for name in trains:
        if name not in parts:
            raise UserError(f"trains: expected 'all' or some of {', '.join(parts)}, got '{name}'")
    model.requires_grad_(False)
    for name in trains:
        parts[name].requires_grad_(True)


def train_mode(model: nn.Module, trains: tuple[str, ...]) -> None:
    """Training mode, but for frozen parts: their statistics and codebooks stay as they are."""
    model.train()
    if trains != ("all",):
        for name, part in model.named_children():
            part.train(name in trains)


def _recompute(model: nn.Module) -> None:
    """Blocks of networks that offer it compute their activations again in the backward."""
    offering = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    if not offering:
        raise UserError("checkpoint_activations: expected a network that offers it, got none")
    for module in offering:
        module.gradient_checkpointing = True


def _split(batch: Batch, parts: int) -> list[Batch]:
    if parts == 1:
        return [batch]
    pieces = {name: tensor.chunk(parts) for name, tensor in batch.items()}
    return [{name: piece[number] for name, piece in pieces.items()} for number in range(parts)]


def _check_finite(player: str, total: torch.Tensor, terms: dict[str, torch.Tensor]) -> None:
    if bool(total.isfinite()):
        return
    guilty = [name for name, value in terms.items() if not bool(value.isfinite())]
    raise NotFiniteLossError(
        f"loss of the {player} is {total.item()}, by {', '.join(guilty) or 'overflow of the sum'}"
    )
