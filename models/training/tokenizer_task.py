"""What training a tokenizer is: reconstruction, perceptual and adversarial losses beside the quantizer's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from models.data.loader import Loader
from models.data.pixels import to_image
from models.data.source import Source, open_source
from models.data.transforms import Crop
from models.errors import UserError
from models.losses.adversarial import (
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    start_factor,
)
from models.losses.perceptual import build_perceptual
from models.losses.pixel import charbonnier, l1, l2, psnr
from models.networks.discriminators import build_discriminator
from models.tokenizers import Tokenizer, TokenizerOutput, build_tokenizer
from models.tokenizers.features import codebook_features, fit_codebook
from models.tokenizers.labels import Labeller
from models.training.config import RunConfig
from models.training.engine import BuildTask
from models.training.task import Batch, Look, Loss, Transform
from models.training.tokenizer_run import TokenizerRun, rebuild_tokenizer


class TokenizerTask:
    """A tokenizer against a discriminator, if the losses ask for one."""

    unit = "images"

    def __init__(
        self,
        config: TokenizerRun,
        number: int,
        tokenizer: Tokenizer,
        device: torch.device,
        labels: Labeller | None = None,
    ) -> None:
        self.stage, self._config = config.stages[number], config
        self._loss = self.stage.loss
        self.tokens = (self.stage.image_size // tokenizer.downsample) ** 2
        self.model, self.timed = tokenizer, tokenizer.quantizer
        self.players: dict[str, nn.Module] = {"model": tokenizer}
        if self._loss.disc_start is not None:
            self.players["discriminator"] = build_discriminator(self._loss.disc)
        self._perceptual: nn.Module | None = None
        if self._loss.perceptual_weight:
            self._perceptual = build_perceptual(
                self._loss.perceptual,
                self._loss.perceptual_layers,
                alpha=self._loss.perceptual_alpha,
                path=self._loss.perceptual_file,
            ).to(device)
        self._labels = labels
        self._fakes: dict[int, torch.Tensor] = {}  # reconstructions of the model's turn, for the discriminator's

    def data(self, split: str) -> tuple[Source, Transform]:
        training = split == "train"
        size = self.stage.image_size
        crop = Crop(
            size=size, resize=size if self.stage.crop == "resize" else None, flip=self.stage.flip and training
        )
        return open_source(self._config.data, split), crop

    def loss(self, player: str, batch: Batch, part: int, step: int) -> Loss | None:
        adversarial = self._loss.disc_start is not None and step >= self._loss.disc_start
        if player == "model":
            return self._tokenizer_loss(batch, part, step, adversarial)
        return self._discriminator_loss(batch["image"], self._fakes.pop(part), step) if adversarial else None

    def look(self, batch: Batch) -> Look:
        images = batch["image"]
        reconstruction = self.model(images).reconstruction.float()
        pairs = torch.cat([images, reconstruction], dim=2)  # [B, 3, 2S, S]

        picture = to_image(torch.cat(list(pairs), dim=2))
        return Look({"val_psnr": psnr(reconstruction, images).item()}, picture)

    def statistics(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.model.quantizer.usage()._asdict().items()}

    def headline(self, line: Mapping[str, float]) -> str:
        return (
            f"{line['images_per_second']:.0f} images/s  loss {line['loss']:.3f}  "
            f"{line['psnr']:.1f} dB  {line['utilization']:.0%} used"
        )

    def _tokenizer_loss(self, batch: Batch, part: int, step: int, adversarial: bool) -> Loss:
        weights, images = self._loss, batch["image"]
        given = () if self._labels is None else (self._labels(batch), step)
        output: TokenizerOutput = self.players["model"](images, *given)
        reconstruction = output.reconstruction.float()
        terms: dict[str, torch.Tensor] = {}
        pixel = images.new_zeros(())
        if weights.l1_weight:
            pixel = pixel + weights.l1_weight * l1(reconstruction, images)
        if weights.l2_weight:
            pixel = pixel + weights.l2_weight * l2(reconstruction, images)
        if weights.charbonnier_weight:
            pixel = pixel + weights.charbonnier_weight * charbonnier(reconstruction, images)
        terms["reconstruction"] = pixel
        if self._perceptual is not None:
            terms["perceptual"] = self._perceptual(reconstruction, images)
            pixel = pixel + weights.perceptual_weight * terms["perceptual"]
        total = pixel + weights.quantizer_weight * output.loss
        terms |= {"quantizer": output.loss, **output.losses}
        if adversarial:
            terms["adversarial"] = generator_loss(self.players["discriminator"](reconstruction), weights.disc_loss)
            if weights.disc_adaptive:
                last = self.model.decoder.output.weight
                terms["adversarial_weight"] = adaptive_weight(pixel, terms["adversarial"], last)
            assert weights.disc_start is not None
            scale = terms.get("adversarial_weight", 1.0) * start_factor(step, weights.disc_start, weights.disc_warmup)
            total = total + weights.disc_weight * scale * terms["adversarial"]
            self._fakes[part] = reconstruction.detach()
        return Loss(total, terms | {"psnr": psnr(reconstruction.detach(), images)})

    def _discriminator_loss(self, real: torch.Tensor, fake: torch.Tensor, step: int) -> Loss:
        weights, judge = self._loss, self.players["discriminator"]
        terms: dict[str, torch.Tensor] = {}
        total = discriminator_loss(judge(real), judge(fake), weights.disc_loss)
        if weights.r1_weight and step % weights.r1_every == 0:
            terms["r1"] = gradient_penalty(judge, real)
            total = total + weights.r1_weight * weights.r1_every * terms["r1"]
        return Loss(total, terms)


def tokenizer_tasks(config: TokenizerRun) -> BuildTask:
    """How the engine gets the task of each stage of a tokenizer's run."""

    def build(
        number: int, weights: Mapping[str, torch.Tensor] | None, grown: bool, device: torch.device
    ) -> TokenizerTask:
        network, quantizer = config.parts(number)
        stage, patch_size = config.stages[number], network.downsample
        if stage.image_size % patch_size:
            raise UserError(f"image_size: expected a multiple of {patch_size} pixels, got {stage.image_size}")

        def crops(size: int) -> Iterator[Batch]:
            return training_crops(config, size, stage.batch_size * (stage.image_size // size) ** 2)

        labels = None
        if config.semantics is not None:
            # clusters are made again where a run goes on: they are a function of data and seed
            labels = Labeller(config.semantics, patch_size, crops(stage.image_size))
        if weights is not None:
            tokenizer = rebuild_tokenizer(config, number, weights, config.recipe, grown=grown)
            return TokenizerTask(config, number, tokenizer, device, labels)
        _check_tokens(config, number, patch_size)
        features = codebook_features(
            quantizer, crops, patch_size=patch_size, image_size=stage.image_size, seed=config.seed
        )
        tokenizer = build_tokenizer(
            network, quantizer, features, accumulate=stage.accumulate, semantics=config.semantics
        )
        task = TokenizerTask(config, number, tokenizer.to(device), device, labels)
        fit_codebook(tokenizer, quantizer, (batch["image"] for batch in crops(stage.image_size)), seed=config.seed)
        return task

    return build


def _check_tokens(config: TokenizerRun, number: int, downsample: int) -> None:
    """More codes than tokens is a mistake that nothing later tells."""
    stage, (_, quantizer) = config.stages[number], config.parts(number)
    tokens = stage.steps * stage.batch_size * (stage.image_size // downsample) ** 2
    if quantizer.codebook != "frozen" and quantizer.num_codes > tokens:
        raise UserError(
            f"num_codes: expected at most the {tokens} tokens that training sees, got {quantizer.num_codes}"
        )


def training_crops(config: RunConfig, size: int, batch_size: int) -> Iterator[Batch]:
    """Batches of training crops without end, the same on every process."""
    source = open_source(config.data, "train")
    with Loader(source, Crop(size=size), batch_size=batch_size, seed=config.seed) as loader:
        yield from loader
