"""SEMANTICIST's tokenizer: ordered concept tokens of an image, and a diffusion decoder that reads any prefix of them.

Tokens may be quantized, by the quantizers of grid tokenizers. B batch, H W pixels, T concept tokens, D channels of a
token, G groups, K codes, C latent channels, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import nn

import vqkernels
from models.networks.concept_dit import ConceptDiT
from models.networks.vit import ConceptEncoder
from models.priors.diffusion import DDPM, DDPMConfig, Flow, FlowConfig
from models.priors.diffusion_sampling import DiffusionSamplingConfig, denoised
from models.priors.guidance import Guidance
from models.priors.sample_random import SampleRandom
from models.tokenizers.latent_space import LatentSpace


class ConceptOutput(NamedTuple):
    """Result of a forward pass: what training minimises."""

    terms: dict[str, torch.Tensor]  # [B] each: "loss" of the diffusion and its parts
    features: torch.Tensor | None  # [B, F, h/p, w/p], for REPA
    indices: torch.Tensor | None  # [B, T] or [B, T, G] int64, of quantized tokens
    loss: torch.Tensor  # [] the quantizer's weighted loss
    losses: dict[str, torch.Tensor]  # its unweighted terms


class PositionUse(NamedTuple):
    """How the codes are used at each position of the sequence, means over groups."""

    utilization: torch.Tensor  # [T] share of codes used at least once
    perplexity: torch.Tensor  # [T] exp of the entropy of the codes


class ConceptTokenizer(nn.Module):
    """Encoder, perhaps a quantizer, and a decoder in the latents of ``space``."""

    def __init__(
        self,
        encoder: ConceptEncoder,
        quantizer: vqkernels.VectorQuantizer | None,  # of [B, D, T]
        decoder: ConceptDiT,
        space: LatentSpace,
        process: DDPMConfig | FlowConfig,
        sampling: DiffusionSamplingConfig,
    ) -> None:
        super().__init__()
        self.encoder, self.quantizer, self.decoder, self.space = encoder, quantizer, decoder, space
        self.process = DDPM(process) if isinstance(process, DDPMConfig) else Flow(process)
        self.sampling = sampling
        self.image_size, self.length = encoder.config.image_size, encoder.config.tokens

    def forward(
        self,
        images: torch.Tensor,  # [B, 3, H, W] in [-1, 1]
        keep: torch.Tensor,  # [B] int64, tokens that the decoder sees of each sample
        generator: torch.Generator | None = None,
    ) -> ConceptOutput:
        """Diffusion losses at random times."""
        clean = self.space.encode(images)  # [B, C, h, w]
        tokens = self.tokens(images)  # [B, T, D]
        indices, loss, losses = None, tokens.new_zeros(()), dict[str, torch.Tensor]()
        if self.quantizer is not None:
            quantized, indices, loss, losses = self.quantizer(tokens.mT)  # [B, D, T], [B, T(, G)]
            tokens = quantized.mT
        features: torch.Tensor | None = None

        def denoise(noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            nonlocal features
            if self.decoder.projector is None:
                return self.decoder(noisy, time, tokens, keep)
            output, features = self.decoder.with_features(noisy, time, tokens, keep)
            return output

        terms = self.process.terms(denoise, clean, generator)
        return ConceptOutput(terms, features, indices, loss, losses)

    def tokens(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, T, D]
        """Concept tokens before quantization, in float32 whatever the autocast."""
        return self.encoder(images).float()

    def latents(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, D, 1, T]
        """The same as a grid of one row, as grid tokenizers give theirs."""
        return self.tokens(images).mT.unsqueeze(2)

    def encode(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, T] or [B, T, G]; or [B, T, D]
        """Indices; without a quantizer the tokens themselves."""
        tokens = self.tokens(images)
        return tokens if self.quantizer is None else self.quantizer.encode(tokens.mT)

    def vectors(self, codes: torch.Tensor) -> torch.Tensor:  # of encode -> [B, T, D]
        """What the decoder reads."""
        return codes if self.quantizer is None else self.quantizer.decode(codes).mT

    @torch.no_grad()
    def decode(
        self,
        codes: torch.Tensor,  # [B, T] or [B, T, G]; without a quantizer [B, T, D]
        *,
        keep: int | torch.Tensor | None = None,  # [B]
        sampling: DiffusionSamplingConfig | None = None,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
    ) -> torch.Tensor:  # [B, 3, H, W]
        """Images from the first tokens of each sample.

        Args:
            codes: of :meth:`encode`.
            keep: tokens used of each sample; None uses all.
            sampling: the way from noise to latents; None takes the tokenizer's own. Its guidance compares with no
                token at all.
            seed: of the noise.
            numbers: of the samples, which name their noise; None counts from 0.
        """
        concepts = self.vectors(codes)  # [B, T, D]
        batch, device = len(concepts), concepts.device
        kept = torch.full((batch,), self.length, device=device)  # [B]
        if keep is not None:
            kept = torch.as_tensor(keep, device=device).expand(batch)
            if int(kept.min()) < 0 or int(kept.max()) > self.length:
                raise ValueError(
                    f"keep: expected 0 to {self.length} tokens, got {int(kept.min())} to {int(kept.max())}"
                )
        config = self.sampling if sampling is None else sampling
        if config.cfg_channels is not None and config.cfg_channels > self.space.channels:
            raise ValueError(f"cfg_channels: expected at most {self.space.channels}, got {config.cfg_channels}")
        guidance = Guidance(config.guidance, torch.zeros_like(kept), batch, num_classes=1)
        rows = guidance.rows(concepts)
        seen = torch.cat([kept, torch.zeros_like(kept)]) if guidance.doubled else kept

        def denoise(noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            output = self.decoder(guidance.rows(noisy), guidance.rows(time), rows, seen)
            if isinstance(self.process, Flow):
                output = output[:, : self.space.channels]
            # the second half of an output is a variance, which is not guided
            return guidance(output, channels=config.cfg_channels or self.space.channels)

        random = SampleRandom(seed, range(batch) if numbers is None else numbers, device)
        start = random.normal(self.space.channels, *self.space.grid(self.image_size))
        return self.space.decode(denoised(denoise, self.process, start, config, random))

    def reconstruct(self, images: torch.Tensor, *, keep: int | None = None, seed: int = 0) -> torch.Tensor:
        """Images from the first tokens of images."""
        with torch.no_grad():
            return self.decode(self.encode(images), keep=keep, seed=seed)


def position_use(tokenizer: ConceptTokenizer, batches: Iterable[torch.Tensor]) -> PositionUse:
    """Use of codes at each position over batches of images [B, 3, H, W]."""
    if tokenizer.quantizer is None:
        raise ValueError("tokenizer: expected one with a quantizer, got continuous tokens")
    groups, num_codes, _ = tokenizer.quantizer.codebook.shape
    slots = tokenizer.length * groups
    counts = torch.zeros(slots * num_codes, dtype=torch.int64)  # of every code at every position and group
    with torch.no_grad():
        for images in batches:
            indices = tokenizer.encode(images).reshape(-1, slots).cpu()  # [B, TG]
            flat = indices + torch.arange(slots) * num_codes
            counts += torch.bincount(flat.flatten(), minlength=len(counts))
    table = counts.view(tokenizer.length, groups, num_codes).double()  # [T, G, K]
    share = table / table.sum(2, keepdim=True)
    entropy = -torch.special.xlogy(share, share).sum(2)  # [T, G]
    return PositionUse((table > 0).double().mean((1, 2)), entropy.exp().mean(1))
