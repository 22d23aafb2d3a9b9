"""GPT over the codes of a tokenizer, in the two styles of the papers, with a key-value cache for sampling.

"mingpt" is the transformer of VQGAN (LayerNorm, GELU, biases, learned positions), which VQGAN-LC and SeQ-GAN use;
"llamagen" that of LlamaGen (RMSNorm, SwiGLU, no biases, 2-D rotary positions), which MGVQ and SEMANTICIST use. A
sequence is one prefix token (the class, or "start") and then the codes in raster order. Causal, what comes out at a
token predicts the next one; bidirectional (MaskGIT), what comes out at a masked token predicts the code it hides.
B batch, S positions, W width, D code dimension, G groups, L codes of a sample, d channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from models.config_json import Hidden
from models.networks.checkpointing import run_block
from models.networks.code_embedding import CodeEmbedding, CodeVectors
from models.networks.code_shape import CodeShape
from models.networks.swiglu import SwiGLU


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Transformer over codes."""

    kind: Hidden[Literal["gpt"]] = "gpt"
    style: Literal["mingpt", "llamagen"] = "llamagen"  # norms, MLP, biases and start of the weights
    layers: int = 12  # blocks
    heads: int = 12  # attention heads
    width: int = 768  # channels inside the transformer
    positions: Literal["learned", "rotary"] = "rotary"  # a vector per cell, or a rotation by row and column
    prefix_rotation: Literal["none", "zero"] = "none"  # "zero" blanks its query and key, as LlamaGen's release does
    inputs: Literal["indices", "vectors", "continuous"] = "indices"  # a table, the tokenizer's vectors, or no codes
    causal: bool = True  # False: every position sees every position, and there is a mask token
    dropout: float = 0.1  # after attention and MLP
    embedding_dropout: float = 0.1  # of the input tokens
    attention_dropout: float = 0.0  # of attention weights

    def __post_init__(self) -> None:
        for name in ("layers", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        multiple = self.heads * (4 if self.positions == "rotary" else 1)
        if self.width < 1 or self.width % multiple:
            raise ValueError(f"width: expected a multiple of {multiple} for {self.heads} heads, got {self.width}")
        for name in ("dropout", "embedding_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a share in [0, 1), got {getattr(self, name)}")
        if self.inputs != "indices" and not self.causal:
            raise ValueError(f"inputs: expected 'indices' for a network with a mask token, got '{self.inputs}'")


def _mingpt(layers: int, heads: int, width: int, dropout: float) -> GPTConfig:
    return GPTConfig(
        style="mingpt",
        layers=layers,
        heads=heads,
        width=width,
        positions="learned",
        dropout=dropout,
        embedding_dropout=dropout,
        attention_dropout=dropout,
    )


def seq_base() -> GPTConfig:
    """SeQ-GAN Base: 172 M without classes on 16 x 16 of 1,024 codes; its NAR twin has ``causal=False``."""
    return _mingpt(24, 16, 768, dropout=0.1)


def seq_large() -> GPTConfig:
    """SeQ-GAN Large: 305 M."""
    return _mingpt(24, 16, 1024, dropout=0.1)


def vqgan_lc() -> GPTConfig:
    """GPT of VQGAN and VQGAN-LC. The "404 M" of 100,000 codes count the blocks and one of the two code tables."""
    return _mingpt(24, 16, 1024, dropout=0.0)


def llamagen_b() -> GPTConfig:
    """LlamaGen-B: 111 M on 16,384 codes and 1,000 classes."""
    return GPTConfig(layers=12, heads=12, width=768)


def llamagen_l() -> GPTConfig:
    """LlamaGen-L: 343 M."""
    return GPTConfig(layers=24, heads=16, width=1024)


def llamagen_xl() -> GPTConfig:
    """LlamaGen-XL: 775 M."""
    return GPTConfig(layers=36, heads=20, width=1280)


def llamagen_xxl() -> GPTConfig:
    """LlamaGen-XXL: 1.4 B."""
    return GPTConfig(layers=48, heads=24, width=1536)


def mgvq_xxl() -> GPTConfig:
    """LlamaGen-XXL as MGVQ feeds it: from the vectors of the codes."""
    return GPTConfig(layers=48, heads=24, width=1536, inputs="vectors")


def epsilon_llamagen_l() -> GPTConfig:
    """SEMANTICIST's: LlamaGen-L over continuous concept tokens, learned positions."""
    return GPTConfig(layers=24, heads=16, width=1024, positions="learned", inputs="continuous", embedding_dropout=0.0)


class KVCache:
    """Keys and values of the positions seen so far, in buffers whose shape never changes.

    The first forward pass allocates them, in the type it computes in. ``clear`` starts over in the same memory.
    """

    def __init__(self, layers: int, capacity: int) -> None:
        self.layers, self.capacity = layers, capacity
        self.length = 0  # positions seen, the prefix among them
        self.visible: torch.Tensor  # [S, capacity], what each of the new positions may look at
        self._buffer: torch.Tensor | None = None  # [layers, 2, B, heads, capacity, d]

    def clear(self) -> None:
        self.length = 0

    def extend(self, count: int, device: torch.device) -> torch.Tensor:  # [count]
        """Make room for ``count`` positions, and say which they are."""
        if self.length + count > self.capacity:
            raise ValueError(f"cache: expected at most {self.capacity} positions, got {self.length} + {count}")
        positions = torch.arange(self.length, self.length + count, device=device)
        self.visible = torch.arange(self.capacity, device=device) <= positions[:, None]
        self.length += count
        return positions

    def write(
        self,
        layer: int,
        key: torch.Tensor,  # [B, heads, S, d]
        value: torch.Tensor,  # [B, heads, S, d]
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [B, heads, capacity, d] twice
        """Store what a layer computed for the positions of the last ``extend``; returns all that it stored."""
        batch, heads, count, channels = key.shape
        if self._buffer is None:
            # zeros: what is not visible is multiplied by zero, which a NaN would survive
            self._buffer = key.new_zeros(self.layers, 2, batch, heads, self.capacity, channels)
        if self._buffer.shape[2] != batch:
            raise ValueError(f"batch: expected {self._buffer.shape[2]} as in the cache, got {batch}")
        stored = self._buffer[layer]
        new = slice(self.length - count, self.length)
        stored[0, :, :, new], stored[1, :, :, new] = key, value
        return stored[0], stored[1]


class Attention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        bias = config.style == "mingpt"
        self.heads, self.causal, self.weight_dropout = config.heads, config.causal, config.attention_dropout
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=bias)
        self.output = nn.Linear(config.width, config.width, bias=bias)

    def forward(
        self,
        x: torch.Tensor,  # [B, S, W]
        rotation: torch.Tensor | None,  # [S, d/2, 2]
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> torch.Tensor:  # [B, S, W]
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, S, d] each
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is None:
            dropout = self.weight_dropout if self.training else 0.0
            x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=self.causal)
        else:
            keys, values = cache.write(layer, k, v)
            x = F.scaled_dot_product_attention(q, keys, values, attn_mask=cache.visible)
        return self.output(x.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and MLP, each on normalised input, each added to what came in."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width = config.width
        self.attention_norm = _norm(config)
        self.attention = Attention(config)
        self.mlp_norm = _norm(config)
        self.mlp: nn.Module
        if config.style == "mingpt":
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        else:
            self.mlp = SwiGLU(width, -(-(8 * width // 3) // 256) * 256)  # 8/3 W, rounded up to a multiple of 256
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: torch.Tensor,  # [B, S, W]
        rotation: torch.Tensor | None,  # [S, d/2, 2]
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> torch.Tensor:  # [B, S, W]
        x = x + self.dropout(self.attention(self.attention_norm(x), rotation, cache, layer))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class GPT(nn.Module):
    """Codes to a vector per position, and, for one index per position, a head that makes them logits.

    The head of groups is another network (``depth_head.py``), that of continuous tokens as well (``flow_head.py``).
    Label ``num_classes`` means "no class"; token ``num_codes`` of a bidirectional network is the mask.
    """

    def __init__(self, config: GPTConfig, codes: CodeShape) -> None:
        super().__init__()
        continuous = config.inputs == "continuous"
        if config.inputs != "indices" and not codes.code_dim:
            raise ValueError(f"code_dim: expected the width of a code for inputs '{config.inputs}', got 0")
        if not continuous and not codes.num_codes:
            raise ValueError(f"num_codes: expected at least 1 for inputs '{config.inputs}', got 0")
        if not config.causal and codes.groups > 1:
            raise ValueError(f"groups: expected 1 for a network with a mask token, got {codes.groups}")
        self.config, self.codes = config, codes
        self.gradient_checkpointing = False
        width = config.width
        self.embed: nn.Module
        if continuous:
            self.embed = nn.Linear(codes.code_dim, width)
        elif config.inputs == "vectors":
            self.embed = CodeVectors(codes.num_codes, codes.groups, codes.code_dim, width)
        else:
            self.embed = CodeEmbedding(codes.num_codes + (not config.causal), codes.groups, width)
        self.prefix = nn.Embedding(codes.num_classes + 1, width)  # the last row: no class, or just "start"
        learned = config.positions == "learned"
        self.cell = nn.Parameter(torch.empty(1 + codes.cells, width)) if learned else None  # the prefix first
        self.frame = nn.Parameter(torch.empty(codes.frames, width)) if codes.frames > 1 else None
        self.input_norm = _norm(config) if continuous else nn.Identity()
        self.input_dropout = nn.Dropout(config.embedding_dropout)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.norm = _norm(config)
        single = codes.groups == 1 and not continuous
        self.head = nn.Linear(width, codes.num_codes, bias=False) if single else None
        self.rotation: torch.Tensor | None  # [1 + L, d/2, 2]
        table = None if learned else rotations(width // config.heads, codes, config.prefix_rotation)
        self.register_buffer("rotation", table, persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for table in (self.cell, self.frame):
            if table is not None:
                nn.init.normal_(table, std=0.02)
        if self.head is not None and self.config.style == "llamagen":
            nn.init.zeros_(self.head.weight)

    def new_cache(self) -> KVCache:
        """An empty cache with room for the prefix and all codes of a sample."""
        if not self.config.causal:
            raise ValueError("cache: expected a causal network, got a bidirectional one")
        return KVCache(self.config.layers, 1 + self.codes.length)

    def forward(
        self,
        codes: torch.Tensor,  # [B, S] indices, [B, S, G] of groups, or [B, S, D] continuous; S may be 0
        labels: torch.Tensor | None = None,  # [B]
        cache: KVCache | None = None,
    ) -> torch.Tensor:  # [B, 1 + S, W]: the prefix comes first; [B, S, W] if the cache holds it already
        """Vectors after the last norm. With a cache, ``codes`` are those that follow what it has seen."""
        if (labels is None) != (self.codes.num_classes == 0):
            wanted = "one class per sample" if labels is None else "none from an unconditional network"
            raise ValueError(f"labels: expected {wanted}, got {'none' if labels is None else tuple(labels.shape)}")
        seen = 0 if cache is None else cache.length
        count = codes.shape[1] + (seen == 0)
        if seen + count > 1 + self.codes.length:
            raise ValueError(f"codes: expected at most {self.codes.length}, got {max(seen - 1, 0) + codes.shape[1]}")
        device = codes.device
        positions = torch.arange(count, device=device) if cache is None else cache.extend(count, device)  # [S]
        x = self.embed(codes)  # [B, S, W]
        if seen == 0:
            start = codes.new_full((len(codes),), self.codes.num_classes, dtype=torch.int64)
            x = torch.cat([self.prefix(start if labels is None else labels).unsqueeze(1), x], dim=1)
        if self.cell is not None:
            x = x + self.cell[torch.where(positions > 0, 1 + (positions - 1) % self.codes.cells, 0)]
        if self.frame is not None:
            # the prefix has no frame
            x = x + self.frame[(positions - 1).clamp(min=0) // self.codes.cells] * (positions > 0)[:, None]
        x = self.input_dropout(self.input_norm(x))
        rotation = None if self.rotation is None else self.rotation[positions]
        for layer, block in enumerate(self.blocks):
            if cache is None:
                x = run_block(block, x, rotation, checkpointing=self.gradient_checkpointing)
            else:
                x = block(x, rotation, cache, layer)
        return self.norm(x)


def rotations(
    channels: int, codes: CodeShape, prefix: Literal["none", "zero"]
) -> torch.Tensor:  # [1 + L, channels / 2, 2]
    """Cosine and sine by which each pair of channels turns: the first half by the row, the second by the column."""
    quarter = channels // 4
    frequencies = 10000 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)  # [d/4]
    rows, columns = (torch.arange(side)[:, None] * frequencies for side in codes.grid)
    angles = torch.cat(
        [
            rows[:, None].expand(-1, codes.grid[1], -1),
            columns[None].expand(codes.grid[0], -1, -1),
        ],
        dim=2,
    ).flatten(0, 1)  # [hw, d/2]
    table = torch.stack([angles.cos(), angles.sin()], dim=2).repeat(codes.frames, 1, 1)  # [L, d/2, 2]
    first = torch.zeros(1, channels // 2, 2, dtype=table.dtype)
    first[..., 0] = float(prefix == "none")
    return torch.cat([first, table]).float()


def rotate(
    x: torch.Tensor, rotation: torch.Tensor
) -> torch.Tensor:  # [B, heads, S, d], [S, d/2, 2] -> [B, heads, S, d]
    """Turn each pair of neighbouring channels; in float32 at least."""
    a, b = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(3, (-1, 2)).unbind(4)  # [B, heads, S, d/2]
    cos, sin = rotation.unbind(2)  # [S, d/2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=4).flatten(3).to(x.dtype)


def _norm(config: GPTConfig) -> nn.Module:
    return nn.LayerNorm(config.width) if config.style == "mingpt" else nn.RMSNorm(config.width, eps=1e-5)
