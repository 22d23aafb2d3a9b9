"""The training of SEMANTICIST's tokenizer, as data; and such tokenizers with the weights of run folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from models.config_json import Flat, Hidden
from models.errors import UserError, first_line
from models.networks.concept_dit import ConceptDiT, ConceptDiTConfig
from models.networks.vit import ConceptEncoder, ConceptEncoderConfig
from models.priors.diffusion import DDPMConfig, FlowConfig
from models.priors.diffusion_sampling import DiffusionSamplingConfig
from models.tokenizers.concept import ConceptTokenizer
from models.tokenizers.config import QuantizerConfig
from models.tokenizers.latent_space import LatentSpace, SpaceConfig
from models.tokenizers.tokenizer import build_quantizer
from models.training.checkpoint import load_weights
from models.training.config import RunConfig, StageConfig, check_positive

_FEATURES = "quantizer.table.features"


@dataclass(frozen=True, kw_only=True)
class ConceptLossConfig:
    """Terms of the loss beside that of the diffusion, and which tokens the decoder is shown."""

    nested_start: int = 1  # first step in which each sample keeps a prefix of its tokens, of any length
    prefixes: Literal["released", "paper"] = "released"  # of 1 to T tokens; as the paper writes it 0 to T - 1
    drop: float = 0.1  # share of samples that keep no token, before nesting starts
    quantizer_weight: float = 1.0  # factor on the whole quantizer loss
    repa_weight: float = 0.0  # REPA: the decoder's inner patches against features of a pretrained network
    repa: Literal["dinov2", "efficientnet_lite0"] = "dinov2"  # the network
    repa_file: str | None = None  # its weights; None looks where --help of models.evaluate says
    repa_map: str | None = None  # which of its maps; None takes the last

    def __post_init__(self) -> None:
        check_positive(self, "nested_start")
        for name in ("quantizer_weight", "repa_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop: expected a share below 1, got {self.drop}")


@dataclass(frozen=True, kw_only=True)
class ConceptStage(StageConfig):
    """A stretch of the training."""

    crop: Literal["own", "resize"] = "own"  # from the image at its own size, or its shorter side scaled to the crop
    flip: bool = True  # mirror half of the crops
    loss: Flat[ConceptLossConfig] = ConceptLossConfig()
    quantizer: Hidden[QuantizerConfig | None] = None  # tokens are quantized from here on; None goes on as before


@dataclass(frozen=True, kw_only=True)
class ConceptRun(RunConfig):
    """A complete training. Two equal configs give the same bits on the same machine."""

    kind: Hidden[Literal["concept"]] = "concept"
    encoder: ConceptEncoderConfig  # images to tokens
    decoder: ConceptDiTConfig  # tokens to what is taken from a noisy latent
    token_dim: int = 16  # channels of a token
    quantizer: Annotated[QuantizerConfig | None, tyro.conf.AvoidSubcommands] = None  # of the tokens
    space: Annotated[SpaceConfig, tyro.conf.AvoidSubcommands]  # latents that the decoder works in
    process: Annotated[DDPMConfig | FlowConfig, tyro.conf.AvoidSubcommands]  # noise added to them
    sampling: DiffusionSamplingConfig  # how the decoder makes images
    use_samples: int = 256  # held-out samples of which the use of codes at each position is logged
    stage: Flat[ConceptStage] = ConceptStage()
    then: tuple[ConceptStage, ...] = ()  # further stages

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "token_dim", "use_samples")
        for quantizer in (self.quantizer, *(stage.quantizer for stage in self.stages)):
            if quantizer is not None and quantizer.code_dim != self.token_dim:
                raise ValueError(f"code_dim: expected token_dim {self.token_dim}, got {quantizer.code_dim}")
        learned = isinstance(self.process, DDPMConfig) and self.process.learned_variance
        if self.decoder.dit.learned_sigma != learned:
            raise ValueError(
                f"learned_sigma: expected {learned} for this process, got {self.decoder.dit.learned_sigma}"
            )
        methods = ("ancestral", "ddim") if isinstance(self.process, DDPMConfig) else ("euler", "heun", "sde")
        if self.sampling.method not in methods:
            raise ValueError(f"method: expected one of {', '.join(methods)}, got {self.sampling.method}")
        for stage in self.stages:
            if (stage.loss.repa_weight > 0) != (self.decoder.repa_layer > 0):
                raise ValueError(
                    "repa_weight: expected more than 0 with a repa_layer and 0 without, "
                    f"got {stage.loss.repa_weight} with {self.decoder.repa_layer}"
                )

    @property
    def stages(self) -> tuple[ConceptStage, ...]:
        return (self.stage, *self.then)

    def quantizer_at(self, stage: int) -> QuantizerConfig | None:
        """Quantizer of a stage: its own, or that of the latest one before that has any."""
        quantizer = self.quantizer
        for earlier in self.stages[: stage + 1]:
            quantizer = earlier.quantizer if earlier.quantizer is not None else quantizer
        return quantizer


def build_concepts(config: ConceptRun, space: LatentSpace) -> ConceptTokenizer:
    """A tokenizer with fresh weights and without a quantizer."""
    encoder = ConceptEncoder(config.encoder, config.token_dim)
    decoder = ConceptDiT(
        config.decoder,
        config.token_dim,
        tokens=config.encoder.tokens,
        channels=space.channels,
        grid=space.grid(config.encoder.image_size),
    )
    return ConceptTokenizer(encoder, None, decoder, space, config.process, config.sampling)


def rebuild_concepts(
    config: ConceptRun, stage: int, weights: Mapping[str, torch.Tensor], source: Path | str, space: LatentSpace
) -> ConceptTokenizer:
    """The tokenizer of a stage with these weights; weights of another one are an error of one line.

    Weights of a stage before tokens were quantized make a tokenizer without a quantizer.
    """
    quantizer = config.quantizer_at(stage)
    try:
        tokenizer = build_concepts(config, space)
        if quantizer is not None and any(name.startswith("quantizer.") for name in weights):
            # the features of a frozen codebook are among the weights, and building needs their shape
            tokenizer.quantizer = build_quantizer(quantizer, weights.get(_FEATURES), config.stages[stage].accumulate)
        load_weights(tokenizer, weights)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{source}: weights do not fit the config ({first_line(error)})") from error
    return tokenizer


def replace_stage(config: ConceptRun, **changes: object) -> ConceptRun:
    """The same training with other fields of its first stage."""
    return dataclasses.replace(config, stage=dataclasses.replace(config.stage, **changes))  # type: ignore[arg-type]
