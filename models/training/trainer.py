"""One training step: a batch, the tokenizer, an optional discriminator, their optimizers.

B batch, S crop size. Batch, random numbers and learning rate of step t are functions of (seed, t, rank), so
that weights and optimizer moments are the whole state of a training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from models.data.photos import Photo, RandomCrops
from models.losses.adversarial import (
    PatchDiscriminator,
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
    psnr,
    reconstruction_loss,
)
from models.tokenizers import Tokenizer
from models.training.config import OptimizerConfig, TrainConfig

_VAL_CROPS = 8


class Trainer:
    """Owns everything that changes from step to step."""

    def __init__(
        self, config: TrainConfig, tokenizer: Tokenizer, photos: Sequence[Photo], accelerator: Accelerator
    ) -> None:
        self.config, self.tokenizer, self.accelerator = config, tokenizer, accelerator
        self._crops = training_crops(config, photos, accelerator.process_index)
        held_out = [photo for photo in photos if photo.split == "val"]
        val_crops = RandomCrops(held_out, size=config.image_size, batch_size=_VAL_CROPS, seed=config.seed)
        self._val_images = val_crops.batch(0).to(accelerator.device)  # [B, 3, S, S]
        self._model, self._optimizer = accelerator.prepare(tokenizer, _adam(tokenizer, config.optimizer))
        self._discriminator: nn.Module | None = None
        if config.loss.disc_start is not None:
            discriminator = PatchDiscriminator(layers=config.loss.disc_layers)
            self._discriminator, self._disc_optimizer = accelerator.prepare(
                discriminator, _adam(discriminator, config.optimizer)
            )

    def step(self, step: int) -> dict[str, torch.Tensor]:
        """Optimizer step number ``step``, the first is 1; the loss, its terms and the PSNR as scalars."""
        config, accelerator = self.config, self.accelerator
        seed_step(config.seed, step, accelerator.process_index)
        images = self._crops.batch(step).to(accelerator.device)  # [B, 3, S, S]
        self._model.train()
        output = self._model(images)
        reconstruction = reconstruction_loss(output.reconstruction, images, config.loss.pixel)
        loss = reconstruction + config.loss.quantizer_weight * output.loss
        values = {"reconstruction": reconstruction, "quantizer": output.loss, **output.losses}
        adversarial = config.loss.disc_start is not None and step >= config.loss.disc_start
        if adversarial:
            term, weight = self._adversarial_loss(output.reconstruction, reconstruction)
            loss = loss + config.loss.disc_weight * weight * term
            values |= {"adversarial": term, "adversarial_weight": weight}
        self._update(self._optimizer, loss, step)
        if adversarial:
            values["discriminator"] = self._discriminator_step(images, output.reconstruction.detach(), step)
        values = {"loss": loss, **values, "psnr": psnr(output.reconstruction, images)}
        return {name: value.detach() for name, value in values.items()}

    @torch.no_grad()
    def validate(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Eight held-out crops: their PSNR ``[]``, and originals above reconstructions ``[3, 2S, BS]``."""
        self._model.eval()
        reconstruction = self._model(self._val_images).reconstruction  # [B, 3, S, S]
        pairs = torch.cat([self._val_images, reconstruction], dim=2)  # [B, 3, 2S, S]
        return psnr(reconstruction, self._val_images), torch.cat(list(pairs), dim=2)

    def weights(self) -> dict[str, torch.Tensor]:
        """The tokenizer's parameters and buffers."""
        return self.tokenizer.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Everything beside :meth:`weights` that the next step depends on."""
        state: dict[str, Any] = {"optimizer": self._optimizer.state_dict()}
        if self._discriminator is not None:
            state["discriminator"] = self.accelerator.unwrap_model(self._discriminator).state_dict()
            state["disc_optimizer"] = self._disc_optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])
        if self._discriminator is not None:
            self.accelerator.unwrap_model(self._discriminator).load_state_dict(state["discriminator"])
            self._disc_optimizer.load_state_dict(state["disc_optimizer"])

    def _adversarial_loss(
        self, fake: torch.Tensor, reconstruction: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._discriminator is not None
        self._discriminator.requires_grad_(False)  # this loss moves the tokenizer alone
        loss = adversarial_loss(self._discriminator(fake))
        return loss, adaptive_weight(reconstruction, loss, self.tokenizer.decoder.output.weight)

    def _discriminator_step(self, real: torch.Tensor, fake: torch.Tensor, step: int) -> torch.Tensor:
        assert self._discriminator is not None
        self._discriminator.requires_grad_(True)
        loss = discriminator_loss(self._discriminator(real), self._discriminator(fake))
        self._update(self._disc_optimizer, loss, step)
        return loss

    def _update(self, optimizer: torch.optim.Optimizer, loss: torch.Tensor, step: int) -> None:
        config = self.config.optimizer
        optimizer.zero_grad()
        self.accelerator.backward(loss)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, self.config.steps)
            if config.max_grad_norm is not None:
                self.accelerator.clip_grad_norm_(group["params"], config.max_grad_norm)
        optimizer.step()


def training_crops(config: TrainConfig, photos: Sequence[Photo], rank: int) -> RandomCrops:
    """The batches of one process; batch 0 and up serve the initialisation too."""
    return RandomCrops(
        [photo for photo in photos if photo.split == "train"],
        size=config.image_size,
        batch_size=config.batch_size,
        seed=config.seed,
        flip=config.flip,
        rank=rank,
    )


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Rate of step ``step`` of ``steps``: linear up, then level or half a cosine down to zero."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - 1 - config.warmup_steps) / (steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one step of one process; step 0 is the initialisation."""
    state = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def _adam(module: nn.Module, config: OptimizerConfig) -> torch.optim.Adam:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.Adam(parameters, lr=config.lr, betas=config.betas, eps=config.eps)
