"""SEMANTICIST's decoder: a DiT that reads ordered concept tokens beside the patches of the noisy latent.

Any prefix of the tokens is a condition: those left out are replaced by learned null tokens. With REPA the patches
after one of the blocks are also projected to the features of a pretrained network. B batch, C latent channels, h w
latent grid, p patch side, L = hw/pp patches, T concept tokens, D channels of a token, W width, F feature channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from models.config_json import Hidden
from models.networks.checkpointing import run_block
from models.networks.dit import DiT, DiTConfig, dit_l, linear


@dataclass(frozen=True, kw_only=True)
class ConceptDiTConfig:
    """Diffusion decoder of concept tokens; the defaults are L/2 without REPA."""

    kind: Hidden[Literal["concept_dit"]] = "concept_dit"
    dit: DiTConfig = field(default_factory=dit_l)  # the transformer
    repa_layer: int = 0  # block after which patches are projected to pretrained features (the paper: 8); 0 is off
    repa_hidden: int = 2048  # width of the projection's MLP
    repa_features: int = 768  # channels of the pretrained features

    def __post_init__(self) -> None:
        if not 0 <= self.repa_layer <= self.dit.layers:
            raise ValueError(f"repa_layer: expected a block from 1 to {self.dit.layers} or 0, got {self.repa_layer}")


def concept_dit_pocket() -> ConceptDiTConfig:
    """0.7 M weights, for two cores."""
    return ConceptDiTConfig(dit=DiTConfig(layers=4, width=96, heads=4))


class ConceptDiT(DiT):
    """Noisy latent, time and concept tokens to the noise and, with ``learned_sigma``, its variance."""

    def __init__(
        self,
        config: ConceptDiTConfig,
        width: int,
        *,
        tokens: int,
        channels: int,
        grid: tuple[int, int],
    ) -> None:
        super().__init__(config.dit, channels=channels, grid=grid, num_classes=0)
        self.repa_layer = config.repa_layer
        self.null_tokens = nn.Parameter(torch.empty(1, tokens, width))
        nn.init.normal_(self.null_tokens, std=0.02)
        self.concept = linear(width, config.dit.width)
        self.projector = _projector(config) if config.repa_layer else None

    def forward(  # type: ignore[override]
        self,
        latent: torch.Tensor,  # [B, C, h, w]
        time: torch.Tensor,  # [B]
        concepts: torch.Tensor,  # [B, T, D]
        keep: torch.Tensor | None = None,  # [B] int64, tokens kept of each sample; None keeps all
    ) -> torch.Tensor:  # [B, C or 2C, h, w]
        return self._run(latent, time, concepts, keep)[0]

    def with_features(
        self,
        latent: torch.Tensor,  # [B, C, h, w]
        time: torch.Tensor,  # [B]
        concepts: torch.Tensor,  # [B, T, D]
        keep: torch.Tensor | None = None,  # [B] int64
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [B, C or 2C, h, w], [B, F, h/p, w/p]
        """The same, and what REPA compares with pretrained features."""
        output, inner = self._run(latent, time, concepts, keep)
        if self.projector is None:
            raise ValueError("repa_layer: expected the block whose patches are projected, got 0")
        return output, self.projector(inner).mT.unflatten(2, (self.rows, self.columns))

    def _run(
        self,
        latent: torch.Tensor,  # [B, C, h, w]
        time: torch.Tensor,  # [B]
        concepts: torch.Tensor,  # [B, T, D]
        keep: torch.Tensor | None,  # [B] int64
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [B, C or 2C, h, w], [B, L, W]
        if concepts.shape[1:] != self.null_tokens.shape[1:]:
            expected = ", ".join(map(str, self.null_tokens.shape[1:]))
            raise ValueError(f"concepts: expected [B, {expected}], got {tuple(concepts.shape)}")
        if keep is not None:
            concepts = with_nulls(concepts, self.null_tokens, keep)
        patches = self.from_latent(latent)  # [B, L, W]
        length = patches.shape[1]
        x = inner = torch.cat([patches, self.concept(concepts)], dim=1)  # [B, L + T, W]
        condition = self.time(time)  # [B, W]
        for number, block in enumerate(self.blocks, start=1):
            x = run_block(block, x, condition, checkpointing=self.gradient_checkpointing)
            if number == self.repa_layer:
                inner = x
        return self.to_latent(x[:, :length], condition), inner[:, :length]


def with_nulls(
    concepts: torch.Tensor,  # [B, T, D]
    nulls: torch.Tensor,  # [1, T, D]
    keep: torch.Tensor,  # [B] int64
) -> torch.Tensor:  # [B, T, D]
    """The first ``keep`` tokens of each sample, then null tokens."""
    kept = torch.arange(concepts.shape[1], device=concepts.device) < keep[:, None]  # [B, T]
    return torch.where(kept[:, :, None], concepts, nulls.to(concepts.dtype))


def draw_prefixes(
    batch: int,
    tokens: int,
    *,
    scheme: Literal["released", "paper"] = "released",
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:  # [B] int64
    """Nested dropout: how many tokens each sample keeps, any number equally often.

    The released code keeps 1 to T; as the paper writes it, 0 to T - 1.
    """
    first = {"released": 1, "paper": 0}[scheme]
    return torch.randint(first, first + tokens, (batch,), generator=generator, device=device)


def draw_dropped(
    batch: int,
    tokens: int,
    *,
    probability: float,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:  # [B] int64
    """Before nesting starts: each sample keeps all its tokens or, with this probability, none."""
    dropped = torch.rand(batch, generator=generator, device=device) < probability  # [B]
    return torch.where(dropped, 0, tokens)


def _projector(config: ConceptDiTConfig) -> nn.Sequential:
    hidden = config.repa_hidden
    return nn.Sequential(
        nn.Linear(config.dit.width, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, config.repa_features),
    )
