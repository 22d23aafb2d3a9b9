"""Vision transformers: SEMANTICIST's encoder of ordered concept tokens, and a classifier of token maps.

Blocks and their names are those of timm and MAE, so that such weights load. B batch, H W pixels, h w grid of patches,
n = h w patches, T concept tokens, L sequence length, W width, D channels of a concept token or of a code map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from models.config_json import Hidden
from models.networks.checkpointing import run_block
from models.networks.precision import at_least_float32

_STD = 0.02  # of weights, tokens and positions at the start


@dataclass(frozen=True, kw_only=True)
class ConceptEncoderConfig:
    """SEMANTICIST's causal ViT; the defaults are B/16 with 256 tokens."""

    kind: Hidden[Literal["concept_encoder"]] = "concept_encoder"
    image_size: int = 256  # pixels per side
    patch_size: int = 16  # pixels per side of a patch
    tokens: int = 256  # concept tokens
    layers: int = 12  # blocks
    width: int = 768  # channels inside the transformer
    heads: int = 12  # attention heads
    drop_path: float = 0.1  # share of samples that skip a branch of the last block; falls to 0 at the first
    standardize: bool = True  # every token leaves with mean 0 and deviation 1 over its channels
    position_std: float = 0.02  # deviation of the positions at the start

    def __post_init__(self) -> None:
        _check_sizes(self, ("patch_size", "tokens", "layers", "heads"))
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size: expected a multiple of {self.patch_size} pixels, got {self.image_size}")
        if not 0 <= self.position_std < math.inf:
            raise ValueError(f"position_std: expected at least 0, got {self.position_std}")


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Plain ViT classifier; the defaults are B, one token of a 16 x 16 map a patch."""

    kind: Hidden[Literal["vit"]] = "vit"
    grid: int = 16  # patches per side
    patch_size: int = 1  # cells of the map, or pixels, per side of a patch
    layers: int = 12  # blocks
    width: int = 768  # channels inside the transformer
    heads: int = 12  # attention heads
    drop_path: float = 0.1  # share of samples that skip a branch of the last block; falls to 0 at the first

    def __post_init__(self) -> None:
        _check_sizes(self, ("grid", "patch_size", "layers", "heads"))


def concept_encoder_pocket() -> ConceptEncoderConfig:
    """16 tokens of images of 64 pixels with 0.3 M weights, for two cores."""
    return ConceptEncoderConfig(
        image_size=64, patch_size=16, tokens=16, layers=2, width=96, heads=4, drop_path=0.0, position_std=0.5
    )


def vit_pocket() -> ViTConfig:
    """Maps of 8 x 8 tokens with 0.8 M weights, for two cores."""
    return ViTConfig(grid=8, layers=4, width=128, heads=4)


class DropPath(nn.Module):
    """In training a sample loses its branch with this probability; the others are scaled to make up for it."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, L, W] -> [B, L, W]
        if not self.training or self.probability == 0:
            return x
        kept = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.probability  # [B, 1, 1]
        return x * kept / (1 - self.probability)


class Attention(nn.Module):
    """Multi-head attention; a mask says who may look at whom."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x: torch.Tensor,  # [B, L, W]
        mask: torch.Tensor | None,  # [L, L] bool
    ) -> torch.Tensor:  # [B, L, W]
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, L, W/heads] each
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # [B, heads, L, W/heads]
        return self.proj(h.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers, four times as wide between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, L, W] -> [B, L, W]
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: torch.Tensor,  # [B, L, W]
        mask: torch.Tensor | None = None,  # [L, L] bool
    ) -> torch.Tensor:  # [B, L, W]
        x = x + self.drop_path(self.attn(self.norm1(x), mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """A patch of any number of channels as one vector."""

    def __init__(self, channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, stride=patch_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] -> [B, n, W]
        return self.proj(x).flatten(2).mT


class ConceptEncoder(nn.Module):
    """Images to ordered tokens: each sees the image and the tokens before it, the image sees no token."""

    def __init__(self, config: ConceptEncoderConfig, width: int) -> None:
        super().__init__()
        if config.standardize and width < 2:
            raise ValueError(f"width: expected at least 2 channels to standardize over, got {width}")
        self.config, self.gradient_checkpointing = config, False
        image = 1 + (config.image_size // config.patch_size) ** 2  # the class token and the patches
        self.patch_embed = PatchEmbed(3, config.patch_size, config.width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.concept_tokens = nn.Parameter(torch.empty(1, config.tokens, config.width))
        self.pos_embed = nn.Parameter(torch.empty(1, image + config.tokens, config.width))
        self.blocks = _blocks(config)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.output = nn.Linear(config.width, width)
        self.mask: torch.Tensor  # [L, L]
        self.register_buffer("mask", concept_mask(image, config.tokens), persistent=False)
        _init_weights(self)
        with torch.no_grad():
            self.pos_embed.mul_(config.position_std / _STD)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, T, D]
        _check_side("images", images, self.config.image_size)
        tokens = self.config.tokens
        patches = self.patch_embed(images)  # [B, n, W]
        batch = patches.shape[0]
        parts = [self.cls_token.expand(batch, -1, -1), patches, self.concept_tokens.expand(batch, -1, -1)]
        x = torch.cat(parts, dim=1) + self.pos_embed  # [B, L, W]
        for block in self.blocks:
            x = run_block(block, x, self.mask, checkpointing=self.gradient_checkpointing)  # [B, L, W]
        x = self.output(self.norm(x[:, -tokens:]))  # [B, T, D]
        return standardized(x) if self.config.standardize else x


def concept_mask(image: int, tokens: int) -> torch.Tensor:  # [L, L] bool, True where a row may look
    """The image looks at itself; concept i looks at the image and at the concepts up to i."""
    length = image + tokens
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    seen[:, :image] = True
    return seen


def standardized(x: torch.Tensor) -> torch.Tensor:  # [..., D] -> [..., D]
    """Mean 0 and deviation 1 over the channels of each token, in float32 at least."""
    x = at_least_float32(x)
    centred = x - x.mean(dim=-1, keepdim=True)
    # the deviation of D - 1 degrees of freedom, as in the released code
    return centred / (x.std(dim=-1, keepdim=True) + 1e-6)


class ViT(nn.Module):
    """Maps of any number of channels to class logits, from the mean over all patches."""

    def __init__(self, config: ViTConfig, *, channels: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.gradient_checkpointing = config, False
        self.patch_embed = PatchEmbed(channels, config.patch_size, config.width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.grid**2, config.width))
        self.blocks = _blocks(config)
        self.fc_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.head = nn.Linear(config.width, num_classes)
        _init_weights(self)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)  # of MAE's finetuning: no class is preferred at first

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, D, H, W] -> [B, classes]
        _check_side("x", x, self.config.grid * self.config.patch_size)
        patches = self.patch_embed(x)  # [B, n, W]
        h = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            h = run_block(block, h, checkpointing=self.gradient_checkpointing)  # [B, 1 + n, W]
        return self.head(self.fc_norm(h[:, 1:].mean(dim=1)))


def load_mae(model: ViT, weights: Mapping[str, torch.Tensor], *, patches: bool = False) -> None:
    """Weights of a pretrained MAE encoder: class token, positions, blocks and, with ``patches``, the embedding.

    Positions are resized to the grid. MAE's decoder and last norm are left out, as in its finetuning.
    """
    left = ("decoder_", "mask_token", "norm.", "patch_embed.") if not patches else ("decoder_", "mask_token", "norm.")
    taken = {name: weight for name, weight in weights.items() if not name.startswith(left)}
    fresh = ("fc_norm.", "head.") if patches else ("fc_norm.", "head.", "patch_embed.")
    wanted = {name for name in model.state_dict() if not name.startswith(fresh)}
    if wanted != taken.keys():
        wrong = sorted(wanted ^ taken.keys())[0]
        raise ValueError(
            f"weights: expected those of an MAE encoder with {model.config.layers} blocks, got {wrong} wrong"
        )
    taken["pos_embed"] = resized_positions(taken["pos_embed"], model.config.grid)
    model.load_state_dict(taken, strict=False)


def resized_positions(positions: torch.Tensor, grid: int) -> torch.Tensor:  # [1, 1 + n, W] -> [1, 1 + grid^2, W]
    """Learned positions of a square grid for another, by bicubic interpolation; that of the class token stays."""
    side = round((positions.shape[1] - 1) ** 0.5)
    if side**2 + 1 != positions.shape[1]:
        raise ValueError(f"positions: expected a class token and a square grid, got {positions.shape[1]} positions")
    if side == grid:
        return positions
    square = positions[:, 1:].mT.unflatten(2, (side, side))  # [1, W, side, side]
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], square.flatten(2).mT], dim=1)


def layer_of(name: str, layers: int) -> int:
    """Depth of a weight, for learning rates that fall from the head down: 0 embeddings, ``layers`` + 1 the head."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return 0 if name.startswith(("cls_token", "pos_embed", "patch_embed.", "concept_tokens")) else layers + 1


def _blocks(config: ConceptEncoderConfig | ViTConfig) -> nn.ModuleList:
    last = max(config.layers - 1, 1)
    rates = [config.drop_path * layer / last for layer in range(config.layers)]
    return nn.ModuleList([Block(config.width, config.heads, rate) for rate in rates])


def _init_weights(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=_STD)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):  # a linear layer over the patch, as MAE starts it
            nn.init.xavier_uniform_(module.weight.flatten(1))
            nn.init.zeros_(module.bias)
    for name, weight in model.named_parameters(recurse=False):
        assert name.endswith(("token", "tokens", "embed")), name
        nn.init.trunc_normal_(weight, std=_STD)


def _check_sizes(config: ConceptEncoderConfig | ViTConfig, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(config, name)}")
    if config.width < 1 or config.width % config.heads:
        raise ValueError(f"width: expected a multiple of {config.heads} heads, got {config.width}")
    if not 0 <= config.drop_path < 1:
        raise ValueError(f"drop_path: expected a share below 1, got {config.drop_path}")


def _check_side(name: str, x: torch.Tensor, side: int) -> None:
    if x.shape[-2:] != (side, side):
        raise ValueError(f"{name}: expected {side}x{side}, got {x.shape[-2]}x{x.shape[-1]}")
