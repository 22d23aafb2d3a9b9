"""What training SEMANTICIST's tokenizer is: noise taken from latents under any prefix of the tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn import functional as F

import vqkernels
from models.data.loader import Loader
from models.data.pixels import to_image
from models.data.source import Source, open_source
from models.data.transforms import Crop
from models.losses.alignment import feature_alignment
from models.losses.pixel import psnr
from models.networks.concept_dit import draw_dropped, draw_prefixes
from models.pretrained import Backbone, load_backbone
from models.tokenizers.concept import ConceptOutput, ConceptTokenizer, position_use
from models.tokenizers.config import QuantizerConfig
from models.tokenizers.features import Crops, codebook_features, fit_codebook
from models.tokenizers.latent_space import PatchSpace
from models.tokenizers.tokenizer import build_quantizer
from models.training.concept_run import ConceptRun, build_concepts, rebuild_concepts
from models.training.engine import BuildTask
from models.training.runs import open_space
from models.training.task import Batch, Look, Loss, Transform
from models.training.tokenizer_task import training_crops

_PATCHES = 64  # per value of a patch, for the components of the latent space
_TOKENS_PER_CODE = 16  # for the codes of a frozen codebook
_ITERATIONS = 10  # of their k-means
_REPEATS = 8  # times at which a held-out sample's loss is looked at


class ConceptTask:
    """Encoder, quantizer and decoder together; there is no opponent."""

    unit = "images"

    def __init__(self, config: ConceptRun, number: int, tokenizer: ConceptTokenizer, device: torch.device) -> None:
        self.stage, self._config = config.stages[number], config
        self._loss, self._device = self.stage.loss, device
        # the stopwatch needs a backward, and tokens of a frozen encoder have none
        self.model, self.timed = tokenizer, tokenizer.quantizer if self.stage.trains == ("all",) else None
        self.tokens = tokenizer.length
        self.players: dict[str, nn.Module] = {"model": tokenizer}
        self._pretrained: Backbone | None = None
        if self._loss.repa_weight:
            self._pretrained = load_backbone(self._loss.repa, self._loss.repa_file)
            self._pretrained.to(device)
        self._held_out: list[torch.Tensor] | None = None

    def data(self, split: str) -> tuple[Source, Transform]:
        training = split == "train"
        size = self._config.encoder.image_size
        crop = Crop(
            size=size, resize=size if self.stage.crop == "resize" else None, flip=self.stage.flip and training
        )
        return open_source(self._config.data, split), crop

    def loss(self, player: str, batch: Batch, part: int, step: int) -> Loss | None:
        images, weights = batch["image"], self._loss
        output: ConceptOutput = self.players[player](images, self._keep(len(images), step))
        terms = {name: term.mean() for name, term in output.terms.items()}
        total = terms.pop("loss")
        terms["diffusion"] = total.detach()
        if self.model.quantizer is not None:
            total = total + weights.quantizer_weight * output.loss
            terms |= {"quantizer": output.loss, **output.losses}
        if self._pretrained is not None:
            assert output.features is not None
            terms["repa"] = feature_alignment(output.features, self._features(images))
            total = total + weights.repa_weight * terms["repa"]
        return Loss(total, terms)

    def look(self, batch: Batch) -> Look:
        """Diffusion losses under prefixes, at the same times with the same noise; images made from prefixes."""
        images, seed = batch["image"], self._config.seed
        prefixes = powers_of_two(self.model.length)
        repeated = images.repeat(_REPEATS, 1, 1, 1)
        values = {}
        for keep in (0, *prefixes):
            generator = torch.Generator(self._device).manual_seed(seed)
            kept = torch.full((len(repeated),), keep, device=self._device)
            values[f"val_loss_{keep}"] = self.model(repeated, kept, generator).terms["loss"].mean().item()
        codes = self.model.encode(images)
        made = [self.model.decode(codes, keep=keep, seed=seed) for keep in prefixes]
        for keep, image in zip(prefixes, made, strict=True):
            values[f"val_psnr_{keep}"] = psnr(image.float(), images).item()
        values["val_psnr"] = values[f"val_psnr_{prefixes[-1]}"]
        if self.model.quantizer is not None:
            use = position_use(self.model, self._use_batches())
            for position in prefixes:
                values[f"utilization_{position}"] = use.utilization[position - 1].item()
                values[f"perplexity_{position}"] = use.perplexity[position - 1].item()
        columns = torch.cat([images, *made], dim=2)  # [B, 3, (1 + prefixes) S, S], the originals above
        return Look(values, to_image(torch.cat(list(columns), dim=2)))

    def statistics(self) -> dict[str, float]:
        if self.model.quantizer is None:
            return {}
        return {name: float(value) for name, value in self.model.quantizer.usage()._asdict().items()}

    def headline(self, line: Mapping[str, float]) -> str:
        used = f"  {line['utilization']:.0%} used" if "utilization" in line else ""
        return f"{line['images_per_second']:.0f} images/s  diffusion loss {line['diffusion']:.3f}{used}"

    def _keep(self, batch: int, step: int) -> torch.Tensor:  # [B]
        length = self.model.length
        if step < self._loss.nested_start:
            return draw_dropped(batch, length, probability=self._loss.drop, device=self._device)
        return draw_prefixes(batch, length, scheme=self._loss.prefixes, device=self._device)

    @torch.no_grad()
    def _features(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, F, h, w]
        assert self._pretrained is not None
        layer = self._loss.repa_map or [name for name in self._pretrained.layers if name != "logits"][-1]
        return self._pretrained.features(images, [layer])[layer]

    def _use_batches(self) -> list[torch.Tensor]:
        """Held-out images of which the use of codes is counted, always the same."""
        if self._held_out is None:
            source, transform = self.data("val")
            wanted, size = self._config.use_samples, min(self._config.use_samples, 64)
            with Loader(source, transform, batch_size=size, seed=self._config.seed, device=self._device) as loader:
                self._held_out = [loader.batch(step)["image"] for step in range(1, -(-wanted // size) + 1)]
        return self._held_out


def powers_of_two(end: int) -> list[int]:
    """1, 2, 4, ... below ``end``, and ``end``."""
    return [*(2**power for power in range((end - 1).bit_length())), end]


def concept_tasks(config: ConceptRun) -> BuildTask:
    """How the engine gets the task of each stage."""

    def build(
        number: int, weights: Mapping[str, torch.Tensor] | None, grown: bool, device: torch.device
    ) -> ConceptTask:
        space, stage, quantizer = open_space(config), config.stages[number], config.quantizer_at(number)

        def crops(size: int) -> Iterator[Batch]:
            return training_crops(config, size, stage.batch_size * (config.encoder.image_size // size) ** 2)

        if weights is None:
            if isinstance(space, PatchSpace):
                space.grid(config.encoder.image_size)
                space.fit(_patches(space, crops(config.encoder.image_size)))
            tokenizer = build_concepts(config, space)
        else:
            tokenizer = rebuild_concepts(config, number, weights, config.recipe, space)
        tokenizer.to(device)
        if quantizer is not None and tokenizer.quantizer is None:
            features = _features(tokenizer, quantizer, config, crops)
            tokenizer.quantizer = build_quantizer(quantizer, features, stage.accumulate).to(device)
            fit_codebook(tokenizer.eval(), quantizer, _images(crops(config.encoder.image_size)), seed=config.seed)
        return ConceptTask(config, number, tokenizer, device)

    return build


def _features(
    tokenizer: ConceptTokenizer, quantizer: QuantizerConfig, config: ConceptRun, crops: Crops
) -> torch.Tensor | None:  # [K, F]
    """Codes of a frozen codebook; ``"tokens"`` are centres of the tokens that the encoder gives by now."""
    size = config.encoder.image_size
    if quantizer.codebook != "frozen" or quantizer.features != "tokens":
        patch = config.encoder.patch_size
        return codebook_features(quantizer, crops, patch_size=patch, image_size=size, seed=config.seed)
    wanted, rows, found = quantizer.num_codes * _TOKENS_PER_CODE, [], 0
    device = next(tokenizer.parameters()).device
    tokenizer.eval()
    with torch.no_grad():
        for images in _images(crops(size)):
            rows.append(tokenizer.tokens(images.to(device)).flatten(0, 1))  # [BT, D]
            found += len(rows[-1])
            if found >= wanted:
                break
    return vqkernels.kmeans(torch.cat(rows), quantizer.num_codes, max_iter=_ITERATIONS, seed=config.seed).centroids


def _patches(space: PatchSpace, batches: Iterator[Batch]) -> torch.Tensor:  # [N, 3, P, P]
    wanted, parts, found = _PATCHES * 3 * space.downsample**2, [], 0
    for images in _images(batches):
        patches = F.pixel_unshuffle(images, space.downsample).movedim(1, -1)  # [B, h, w, 3PP]
        parts.append(patches.flatten(0, 2).unflatten(1, (3, space.downsample, space.downsample)))
        found += len(parts[-1])
        if found >= wanted:
            break
    return torch.cat(parts)


def _images(batches: Iterator[Batch]) -> Iterator[torch.Tensor]:
    return (batch["image"] for batch in batches)
