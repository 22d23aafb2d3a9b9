"""Network and quantizer of a tokenizer, as data. Every system's quantizer is a setting of one config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.losses.semantic import SemanticLossConfig
from models.networks.aggregator import AggregatorConfig
from models.networks.dcae import DCAEConfig
from models.networks.maskgit_conv import MaskGITConvConfig
from models.networks.patch import PatchConfig
from models.networks.vqgan import VQGANConfig

Network = PatchConfig | VQGANConfig | MaskGITConvConfig | DCAEConfig


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """The quantizer, in the terms of ``vqkernels.VectorQuantizer``."""

    codebook: Literal["learned", "ema", "online", "frozen", "semantic"]  # how the codes move
    num_codes: int = 4096  # codes in each group
    groups: int = 1  # groups, each with a codebook of its own
    code_dim: int = 8  # width of the quantized vector, all groups together
    metric: Literal["l2", "cosine"] = "l2"  # of the lookup; "cosine" compares and yields unit vectors
    gradient: Literal["ste", "rotation"] = "ste"  # how the decoder's gradient passes the lookup
    commitment_weight: float = 1.0  # pulls the encoder to the codes
    codebook_weight: float = 0.33  # pulls the codes to the encoder
    decay: float = 0.99  # of the running averages of "ema" and "online"
    anchor: Literal["closest", "random", "probabilistic"] = "closest"  # where "online" and "semantic" move dead codes
    nested_keep_probs: tuple[float, ...] | None = None  # MGVQ: of keeping the first 1, 2, ... groups in training
    nested_scope: Literal["entry", "batch"] = "entry"  # what has a draw of its own
    entropy_weight: float = 0.0  # SeQ-GAN: raises the entropy of the mean soft assignment
    entropy_temperature: float = 1.0  # of its softmax over squared distances
    init: Literal["published", "matched", "kmeans"] = "published"  # start of the codes, see features.py
    features: str = "patches"  # of "frozen": "patches", "random", a network of models/pretrained, or a .npy file
    features_pick: Literal["kmeans", "kmeans_per_class", "sample"] = "kmeans"  # how codes are made of them
    features_file: str | None = None  # weights of the network, where it does not find them by itself
    features_layer: str | None = None  # of the network; None takes its last map
    features_size: int | None = None  # pixels per side that crops are scaled to for it; None takes its own size
    feature_dim: int = 32  # dimensions kept of whitened patches, or of "random"
    projector: Literal["linear", "mlp", "none"] = "linear"  # from features to codes
    tuned: bool = False  # features are trained too

    def __post_init__(self) -> None:
        fitting = "matched" if self.codebook == "frozen" else "kmeans"
        if self.init not in ("published", fitting):
            expected = f"'published' or '{fitting}' for codebook='{self.codebook}'"
            raise ValueError(f"init: expected {expected}, got '{self.init}'")
        for name in ("num_codes", "groups", "code_dim", "feature_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.code_dim % self.groups:
            raise ValueError(f"groups: expected a divisor of code_dim {self.code_dim}, got {self.groups}")


@dataclass(frozen=True, kw_only=True)
class SemanticsConfig:
    """SGC-VQGAN: classes of tokens, levels of codes, and a loss that brings the two together."""

    labels: Literal["maps", "segformer", "clusters"] = "maps"  # classes of tokens
    # "maps": of label maps; "segformer": predicted; "clusters": of a network's features, where nothing is labelled
    labels_network: str = "efficientnet_lite0"  # of "clusters"
    labels_layer: str | None = None  # of that network; None takes its last map
    labels_file: str | None = None  # weights of the network
    num_classes: int = 15  # classes, or clusters
    sigma: float = 0.5  # weight from which on a level is high
    high_weight: float = 1.0  # of the high levels in the distance of "semantic" codes
    code_class: Literal["anchor", "histogram"] = "anchor"  # what "semantic" codes are drawn to
    aggregator: AggregatorConfig = AggregatorConfig()
    loss: SemanticLossConfig = SemanticLossConfig()
    weight: float = 0.1  # of the loss
    on: Literal["codes", "codes_and_vectors"] = "codes"  # what the loss looks at

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {self.num_classes}")
        if self.weight < 0:
            raise ValueError(f"weight: expected at least 0, got {self.weight}")
