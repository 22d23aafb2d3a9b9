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
from models.tokenizers.config import Network, QuantizerConfig
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
    ) -> None:
        super().__init__()
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder
        self.downsample = encoder.downsample  # pixels per side of one token

    def forward(self, images: torch.Tensor) -> TokenizerOutput:  # [B, 3, H, W] in [-1, 1]
        z = self.latents(images)  # [B, D, h, w]
        quantized, indices, loss, losses = self.quantizer(z)  # [B, D, h, w], [B, h, w(, G)]
        return TokenizerOutput(self.decoder(quantized), indices, loss, losses)  # [B, 3, H, W]

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
        return self.decoder(self.quantizer.decode(indices))


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
) -> Tokenizer:
    """A tokenizer with fresh weights; a frozen codebook holds ``features``.

    Args:
        network: encoder and decoder.
        quantizer: what is between them.
        features: codes of a frozen codebook, as far as they are known.
        accumulate: forwards that make one update of codes that are running means.
    """
    encoder, decoder = _NETWORKS[type(network)]
    width = quantizer.code_dim
    return Tokenizer(
        encoder(network, width), _build_quantizer(quantizer, features, accumulate), decoder(network, width)
    )


def _build_quantizer(
    config: QuantizerConfig, features: torch.Tensor | None, accumulate: int
) -> vqkernels.VectorQuantizer:
    regularizers = []
    if config.entropy_weight:
        usage = EntropyLoss(temperature=config.entropy_temperature, sample_weight=0.0)
        regularizers.append(vqkernels.Regularizer(name="entropy", loss=usage, weight=config.entropy_weight))
    return vqkernels.VectorQuantizer(
        config.code_dim,
        config.num_codes,
        groups=config.groups,
        metric=config.metric,
        codebook=_codebook(config, features, accumulate),
        gradient=config.gradient,
        commitment_weight=config.commitment_weight,
        codebook_weight=config.codebook_weight,
        regularizers=regularizers,
        nested_keep_probs=config.nested_keep_probs,
        nested_scope=config.nested_scope,
        channels_first=True,
    )


def _codebook(config: QuantizerConfig, features: torch.Tensor | None, accumulate: int) -> Any:
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
