"""The training of a tokenizer, as data; and tokenizers out of run folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from models.config_json import Flat, Hidden
from models.errors import UserError, first_line
from models.networks.discriminators import DiscriminatorConfig, PatchGANConfig
from models.tokenizers import Tokenizer, build_tokenizer
from models.tokenizers.config import Network, QuantizerConfig, SemanticsConfig
from models.training.checkpoint import load_weights
from models.training.config import RunConfig, StageConfig, check_not_negative, check_positive

_FEATURES = "quantizer.table.features"


@dataclass(frozen=True, kw_only=True)
class TokenizerLossConfig:
    """Terms of a tokenizer's loss; a term of weight 0 is not computed."""

    l1_weight: float = 1.0  # mean absolute difference of pixels
    l2_weight: float = 0.0  # mean squared difference
    charbonnier_weight: float = 0.0  # mean of sqrt(difference^2 + 1e-6)
    quantizer_weight: float = 1.0  # factor on the whole quantizer loss
    perceptual_weight: float = 0.0  # difference of a pretrained network's features
    perceptual: Literal["efficientnet_lite0", "vgg16", "lpips"] = (
        "efficientnet_lite0"  # "lpips": VGG16 with learned weights
    )
    perceptual_file: str | None = None  # its weights; None looks where --help of models.evaluate says
    perceptual_layers: Literal["lpips", "low", "sem", "a", "b", "c", "d", "e"] = "lpips"  # SeQ-GAN's sets, or LPIPS's
    perceptual_alpha: float | None = None  # SeQ-GAN's mix: alpha sem + (1 - alpha) low; None takes the set above
    disc_start: int | None = None  # first step of the adversarial loss; None trains without a discriminator
    disc_warmup: int = 0  # steps after it in which its weight climbs to the full one
    disc_weight: float = 0.1  # factor on the adversarial loss
    disc_adaptive: bool = True  # scale it to the gradient of the other terms at the last layer, as in VQGAN
    disc_loss: Literal["hinge", "vanilla", "logistic"] = "hinge"  # "logistic" is StyleGAN2's, non-saturating
    disc: Annotated[DiscriminatorConfig, tyro.conf.AvoidSubcommands] = PatchGANConfig()  # the discriminator
    r1_weight: float = 0.0  # gradient penalty on real images
    r1_every: int = 16  # steps between two penalties, weighted up accordingly

    def __post_init__(self) -> None:
        check_positive(self, "r1_every")
        if self.disc_start is not None and self.disc_start < 1:
            raise ValueError(f"disc_start: expected None or at least 1, got {self.disc_start}")
        if self.disc_warmup < 0:
            raise ValueError(f"disc_warmup: expected at least 0, got {self.disc_warmup}")
        check_not_negative(self, *(f.name for f in dataclasses.fields(self) if f.name.endswith("_weight")))


@dataclass(frozen=True, kw_only=True)
class TokenizerStage(StageConfig):
    """A stretch of a tokenizer's training."""

    image_size: int = 64  # pixels per side of a training crop
    crop: Literal["own", "resize"] = "own"  # from the image at its own size, or its shorter side scaled to image_size
    flip: bool = True  # mirror half of the crops
    loss: Flat[TokenizerLossConfig] = TokenizerLossConfig()
    network: Hidden[Network | None] = None  # from here on, weights kept where it has the same; None goes on with it
    quantizer: Hidden[QuantizerConfig | None] = None  # likewise

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "image_size")
        if self.loss.disc_start is not None:
            self.loss.disc.check_image_size(self.image_size)


@dataclass(frozen=True, kw_only=True)
class TokenizerRun(RunConfig):
    """A complete tokenizer training. Two equal configs give the same bits on the same machine."""

    kind: Hidden[Literal["tokenizer"]] = "tokenizer"
    network: Annotated[Flat[Network], tyro.conf.AvoidSubcommands]
    quantizer: Flat[QuantizerConfig]
    # of SGC-VQGAN; None is without
    semantics: Annotated[SemanticsConfig | None, tyro.conf.AvoidSubcommands] = None
    stage: Flat[TokenizerStage] = TokenizerStage()
    then: tuple[TokenizerStage, ...] = ()  # further stages

    @property
    def stages(self) -> tuple[TokenizerStage, ...]:
        return (self.stage, *self.then)

    def parts(self, stage: int) -> tuple[Network, QuantizerConfig]:
        """Network and quantizer of a stage: its own, or those of the latest one before that has any."""
        network, quantizer = self.network, self.quantizer
        for earlier in self.stages[: stage + 1]:
            network = earlier.network if earlier.network is not None else network
            quantizer = earlier.quantizer if earlier.quantizer is not None else quantizer
        return network, quantizer


def replace_stage(config: TokenizerRun, **changes: Any) -> TokenizerRun:
    """The same training with other fields of its first stage."""
    return dataclasses.replace(config, stage=dataclasses.replace(config.stage, **changes))


def rebuild_tokenizer(
    config: TokenizerRun, stage: int, weights: Mapping[str, torch.Tensor], source: Path | str, *, grown: bool = False
) -> Tokenizer:
    """The tokenizer of a stage with these weights; weights of another one are an error of one line.

    With ``grown`` the network may have parts that the weights lack: those start as the network makes them.
    """
    try:
        # the features of a frozen codebook are among the weights, and building needs their shape
        network, quantizer = config.parts(stage)
        tokenizer = build_tokenizer(
            network,
            quantizer,
            weights.get(_FEATURES),
            accumulate=config.stages[stage].accumulate,
            semantics=config.semantics,
        )
        missing, unexpected = load_weights(tokenizer, weights, strict=not grown)
        lacking = [name for name in missing if not (grown and tokenizer.has_grown(name))]
        if lacking or unexpected:
            raise ValueError(f"missing {lacking[:3]}, unexpected {unexpected[:3]}")
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{source}: weights do not fit the config ({first_line(error)})") from error
    return tokenizer


def upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """config.json of a run from before there were stages, in today's fields."""
    if "kind" in content or "network" not in content:
        return content
    old = dict(content)
    loss = dict(old.pop("loss"))
    pixel, layers = loss.pop("pixel"), loss.pop("disc_layers")
    loss |= {"l1_weight": float(pixel == "l1"), "l2_weight": float(pixel == "l2")}
    loss["disc"] = {"kind": "patchgan", "layers": layers}
    stage = {name: old.pop(name) for name in ("steps", "batch_size", "image_size", "flip", "optimizer")}
    return {**old, "kind": "tokenizer", "stage": {**stage, "loss": loss}}
