"""The tokenizer: images to code indices and back, whatever the network.

B batch, H W pixels, h w grid, D code dimension, G groups.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

import vqkernels
from models.networks.patch import PatchConfig, PatchDecoder, PatchEncoder
from models.networks.vqgan import VQGANConfig, VQGANDecoder, VQGANEncoder
from models.tokenizers.config import QuantizerConfig


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
        encoder: PatchEncoder | VQGANEncoder,
        quantizer: vqkernels.VectorQuantizer,
        decoder: PatchDecoder | VQGANDecoder,
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

    def decode(self, indices: torch.Tensor) -> torch.Tensor:  # [B, h, w] or [B, h, w, G] -> [B, 3, H, W]
        return self.decoder(self.quantizer.decode(indices))


def build_tokenizer(
    network: PatchConfig | VQGANConfig,
    quantizer: QuantizerConfig,
    features: torch.Tensor | None = None,  # [K, F]
) -> Tokenizer:
    """A tokenizer with fresh weights; a frozen codebook holds ``features``."""
    width = quantizer.code_dim
    encoder: PatchEncoder | VQGANEncoder
    decoder: PatchDecoder | VQGANDecoder
    if isinstance(network, PatchConfig):
        encoder, decoder = PatchEncoder(network, width), PatchDecoder(network, width)
    else:
        encoder, decoder = VQGANEncoder(network, width), VQGANDecoder(network, width)
    return Tokenizer(encoder, _build_quantizer(quantizer, features), decoder)


def _build_quantizer(config: QuantizerConfig, features: torch.Tensor | None) -> vqkernels.VectorQuantizer:
    codebook: vqkernels.Learned | vqkernels.Ema | vqkernels.OnlineClustering | vqkernels.Frozen
    if config.codebook == "learned":
        codebook = vqkernels.Learned()
    elif config.codebook == "ema":
        codebook = vqkernels.Ema(decay=config.decay)
    elif config.codebook == "online":
        codebook = vqkernels.OnlineClustering(decay=config.decay, anchor=config.anchor)
    elif features is None:
        raise ValueError("features: expected the [K, F] codes of a frozen codebook, got None")
    else:
        projector_init = "matched" if config.init == "matched" else "published"
        codebook = vqkernels.Frozen(features=features, projector=True, projector_init=projector_init)
    return vqkernels.VectorQuantizer(
        config.code_dim,
        config.num_codes,
        groups=config.groups,
        metric=config.metric,
        codebook=codebook,
        commitment_weight=config.commitment_weight,
        codebook_weight=config.codebook_weight,
        channels_first=True,
    )
