"""The tokenizer: images to code indices and back, whatever the network.

B batch, H W pixels, h w grid, D code dimension, G groups.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

import vqkernels
from models.networks.dcae import DCAEConfig, DCAEDecoder, DCAEEncoder
from models.networks.maskgit_conv import MaskGITConvConfig, MaskGITConvDecoder, MaskGITConvEncoder
from models.networks.patch import PatchConfig, PatchDecoder, PatchEncoder
from models.networks.vqgan import VQGANConfig, VQGANDecoder, VQGANEncoder
from models.tokenizers.config import Network, QuantizerConfig, SemanticsConfig
from models.tokenizers.semantics import Semantics
from vqkernels.nn import EntropyLoss


class TokenizerOutput(NamedTuple):
    """Result of a forward pass."""

    reconstruction: torch.Tensor  # [B, 3, H, W], not clipped
    indices: torch.Tensor  # [B, h, w] or [B, h, w, G] int64
    loss: torch.Tensor  # [] the quantizer's weighted loss
    losses: dict[str, torch.Tensor]  # its unweighted terms


class Tokenizer(nn.Module):
    """Encoder, quantizer and decoder, wired together."""

    def __init__(
        self,
        encoder: Any,  # images [B, 3, H, W] to latents [B, D, h, w], of networks/
        quantizer: vqkernels.VectorQuantizer,
        decoder: Any,  # the way back
        semantics: Semantics | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder
        self.semantics = semantics
        self.downsample = encoder.downsample  # pixels per side of one token

    def forward(
        self,
        images: torch.Tensor,  # [B, 3, H, W] in [-1, 1]
        labels: torch.Tensor | None = None,  # [B, h, w] int64, -1 = none
        step: int = 0,
    ) -> TokenizerOutput:
        """``labels`` and ``step`` of the training are for semantics alone."""
        z = self.latents(images)  # [B, D, h, w]
        takes_labels = self.semantics is not None and self.semantics.guides_codes and labels is not None
        given = {"labels": labels} if takes_labels else {}
        quantized, indices, loss, losses = self.quantizer(z, **given)  # [B, D, h, w], [B, h, w(, G)]
        if self.semantics is not None and labels is not None:
            codes = self.quantizer.decode(indices)  # [B, D, h, w], with their gradient
            losses = {**losses, "semantic": self.semantics(codes, z, labels, step)}
            loss = loss + self.semantics.weight * losses["semantic"]
        return TokenizerOutput(self._decoded(quantized), indices, loss, losses)  # [B, 3, H, W]

    def _decoded(self, quantized: torch.Tensor) -> torch.Tensor:  # [B, D, h, w] -> [B, 3, H, W]
        return self.decoder(quantized if self.semantics is None else self.semantics.aggregator(quantized))

    def latents(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, D, h, w]
        """Encoder output before quantization, in float32 whatever the autocast."""
        height, width = images.shape[-2:]
        if height % self.downsample or width % self.downsample:
            raise ValueError(f"images: expected multiples of {self.downsample} pixels, got {height}x{width}")
        return self.encoder(images).float()

    def encode(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, h, w] or [B, h, w, G]
        return self.quantizer.encode(self.latents(images))

    def has_grown(self, name: str) -> bool:
        """Whether weights of an earlier stage may lack this one: it starts so that it changes nothing."""
        grown = getattr(self.decoder, "grown", None)
        return grown is not None and name.startswith("decoder.") and grown in name

    def decode(self, indices: torch.Tensor) -> torch.Tensor:  # [B, h, w] or [B, h, w, G] -> [B, 3, H, W]
        return self._decoded(self.quantizer.decode(indices))


_NETWORKS: dict[type, tuple[Any, Any]] = {
    PatchConfig: (PatchEncoder, PatchDecoder),
    VQGANConfig: (VQGANEncoder, VQGANDecoder),
    MaskGITConvConfig: (MaskGITConvEncoder, MaskGITConvDecoder),
    DCAEConfig: (DCAEEncoder, DCAEDecoder),
}


def build_tokenizer(
    network: Network,
    quantizer: QuantizerConfig,
    features: torch.Tensor | None = None,  # [K, F]
    *,
    accumulate: int = 1,
    semantics: SemanticsConfig | None = None,
) -> Tokenizer:
    """A tokenizer with fresh weights; a frozen codebook holds ``features``.

    Args:
        network: encoder and decoder.
        quantizer: what is between them.
        features: codes of a frozen codebook, as far as they are known.
        accumulate: forwards that make one update of codes that are running means.
        semantics: classes of tokens and what is made of them.
    """
    encoder, decoder = _NETWORKS[type(network)]
    width = quantizer.code_dim
    first, middle = encoder(network, width), build_quantizer(quantizer, features, accumulate, semantics)
    if semantics is None:
        return Tokenizer(first, middle, decoder(network, width))
    meaning = Semantics(semantics, middle)
    return Tokenizer(first, middle, decoder(network, meaning.aggregator.width), meaning)


def build_quantizer(
    config: QuantizerConfig,
    features: torch.Tensor | None = None,  # [K, F]
    accumulate: int = 1,
    semantics: SemanticsConfig | None = None,
) -> vqkernels.VectorQuantizer:
    """The quantizer of a config; vectors along dimension 1."""
    regularizers = []
    if config.entropy_weight:
        usage = EntropyLoss(temperature=config.entropy_temperature, sample_weight=0.0)
        regularizers.append(vqkernels.Regularizer(name="entropy", loss=usage, weight=config.entropy_weight))
    return vqkernels.VectorQuantizer(
        config.code_dim,
        config.num_codes,
        groups=config.groups,
        metric=config.metric,
        codebook=_codebook(config, features, accumulate, semantics),
        gradient=config.gradient,
        commitment_weight=config.commitment_weight,
        codebook_weight=config.codebook_weight,
        regularizers=regularizers,
        nested_keep_probs=config.nested_keep_probs,
        nested_scope=config.nested_scope,
        channels_first=True,
    )


def _codebook(
    config: QuantizerConfig, features: torch.Tensor | None, accumulate: int, semantics: SemanticsConfig | None
) -> Any:
    if config.codebook == "semantic":
        if semantics is None:
            raise ValueError("codebook: expected a recipe with semantics for 'semantic', got one without")
        return vqkernels.SemanticClustering(
            decay=config.decay,
            anchor=config.anchor,
            num_classes=semantics.num_classes,
            levels=semantics.loss.levels,
            level_weights=semantics.loss.weights,
            sigma=semantics.sigma,
            high_weight=semantics.high_weight,
            label=semantics.code_class,
        )
    if config.codebook == "learned":
        return vqkernels.Learned()
    if config.codebook == "ema":
        return vqkernels.Ema(decay=config.decay, accumulate=accumulate)
    if config.codebook == "online":
        return vqkernels.OnlineClustering(decay=config.decay, anchor=config.anchor)
    if features is None:
        raise ValueError("features: expected the [K, F] codes of a frozen codebook, got None")
    projector_init = "matched" if config.init == "matched" else "published"
    return vqkernels.Frozen(
        features=features, projector=config.projector, projector_init=projector_init, tuned=config.tuned
    )
