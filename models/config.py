"""What a tokenizer training is, as data: frozen dataclasses, one comment per field, JSON in and out."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

T = TypeVar("T")
Hidden = Annotated[T, tyro.conf.Suppress]  # part of the config, not of the command line


@dataclass(frozen=True, kw_only=True)
class PatchConfig:
    """Patch tokenizer: 8x8 pixels become one vector, two cores train it in half a minute."""

    kind: Hidden[Literal["patch"]] = "patch"
    patch_size: int = 8  # pixels per side of a patch
    hidden: int = 256  # channels inside encoder and decoder
    blocks: int = 2  # residual blocks on either side

    @property
    def downsample(self) -> int:
        """Pixels per side of one token."""
        return self.patch_size


@dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """Convolutional VQGAN encoder and decoder, halving the map between levels."""

    kind: Hidden[Literal["vqgan"]] = "vqgan"
    base_channels: int = 128  # channels at full resolution
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # channel factor of each level
    res_blocks: int = 2  # residual blocks per level (the decoder has one more)
    attention_levels: tuple[int, ...] = (4,)  # levels with self-attention after each block
    latent_channels: int = 256  # channels before the 1x1 convolution to the code dimension

    @property
    def downsample(self) -> int:
        """Pixels per side of one token."""
        return 2 ** (len(self.multipliers) - 1)


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """The quantizer, in the terms of ``vqkernels.VectorQuantizer``."""

    codebook: Literal["learned", "ema", "online", "frozen"]  # how the codes move
    num_codes: int = 4096  # codes in each group
    groups: int = 1  # groups, each with a codebook of its own
    code_dim: int = 8  # width of the quantized vector, all groups together
    metric: Literal["l2", "cosine"] = "l2"  # of the lookup; "cosine" compares and yields unit vectors
    commitment_weight: float = 1.0  # pulls the encoder to the codes
    codebook_weight: float = 0.33  # pulls the codes to the encoder
    decay: float = 0.99  # of the running averages of "ema" and "online"
    anchor: Literal["closest", "random"] = "closest"  # where "online" moves its dead codes
    init: Literal["published", "matched", "kmeans"] = "published"  # start of the codes, see features.py
    features: str = "patches"  # codes of "frozen": k-means of training patches, or a .npy file [K, F]
    feature_dim: int = 32  # dimensions kept of the whitened patches

    def __post_init__(self) -> None:
        fitting = "matched" if self.codebook == "frozen" else "kmeans"
        if self.init not in ("published", fitting):
            expected = f"'published' or '{fitting}' for codebook='{self.codebook}'"
            raise ValueError(f"init: expected {expected}, got '{self.init}'")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Terms of the training loss beside the quantizer's own weights."""

    pixel: Literal["l1", "l2"] = "l1"  # reconstruction term, mean over pixels
    quantizer_weight: float = 1.0  # factor on the whole quantizer loss
    disc_start: int | None = None  # first step of the adversarial loss; None trains without a discriminator
    disc_weight: float = 0.1  # factor on the adaptive adversarial weight
    disc_layers: int = 3  # strided layers of the PatchGAN discriminator


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam, linear warm-up, then constant or half-cosine to zero."""

    lr: float = 1e-3  # peak learning rate
    betas: tuple[float, float] = (0.9, 0.99)  # of Adam
    eps: float = 1e-8  # of Adam
    warmup_steps: int = 0  # steps of linear warm-up
    schedule: Literal["constant", "cosine"] = "cosine"  # after the warm-up
    max_grad_norm: float | None = None  # gradient clipping; None is off


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A complete training run. Two equal configs give the same bits on the same machine."""

    recipe: Hidden[str]  # name of the recipe this started from
    network: Annotated[PatchConfig | VQGANConfig, tyro.conf.AvoidSubcommands]
    quantizer: QuantizerConfig
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: str = "embedded"  # "embedded" photographs, or a folder of images
    image_size: int = 64  # pixels per side of a training crop
    batch_size: int = 32  # crops per step and process
    flip: bool = True  # mirror half of the crops
    steps: int = 600  # optimizer steps
    seed: int = 0  # of weights, crops and everything random
    log_every: int = 10  # steps per line of metrics.jsonl
    val_every: int = 100  # steps per look at held-out crops
    checkpoint_every: int = 100  # steps per checkpoint
    mixed_precision: Literal["no", "bf16"] = "no"  # autocast of the network

    def __post_init__(self) -> None:
        for name in ("image_size", "batch_size", "steps", "log_every", "val_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Inverse of :meth:`to_json`; raises ValueError on anything else."""
        config = _parse(cls, json.loads(text), "config")
        assert isinstance(config, cls)
        return config


def differing_fields(a: Any, b: Any, prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two configs differ, with both values."""
    if type(a) is not type(b) or not dataclasses.is_dataclass(a):
        return [] if a == b else [f"{prefix} {a!r} / {b!r}"]
    lines = []
    for field in dataclasses.fields(a):
        name = f"{prefix}.{field.name}" if prefix else field.name
        lines += differing_fields(getattr(a, field.name), getattr(b, field.name), name)
    return lines


def _parse(kind: Any, value: Any, name: str) -> Any:
    """A JSON value as the annotated type: dataclass, union, literal, tuple, number, string or boolean."""
    origin, args = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        if not isinstance(value, dict) or value.keys() != hints.keys():
            got = sorted(value) if isinstance(value, dict) else value
            raise ValueError(f"{name}: expected the fields {sorted(hints)}, got {got}")
        return kind(**{key: _parse(hints[key], value[key], f"{name}.{key}") for key in hints})
    if origin in (Union, UnionType):
        for option in args:
            try:
                return _parse(option, value, name)
            except ValueError:
                continue
        raise ValueError(f"{name}: expected one of {args}, got {value!r}")
    if origin is tuple and isinstance(value, list):
        return tuple(_parse(args[0], item, name) for item in value)
    if origin is Literal and value in args:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise ValueError(f"{name}: expected {kind}, got {value!r}")
