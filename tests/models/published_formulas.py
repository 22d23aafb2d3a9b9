"""Published networks as plain formulas in float64, on weights that are made when a formula first asks for them.

So running a formula once makes a checkpoint in the names of its layout, and what it has to give. B batch, C channels,
h w map, N positions, D code dimension, K codes, G groups, E channels of a head, L sequence length, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F


class Made(dict[str, torch.Tensor]):
    """Random weights by name, as float32 in the dict and as float64 to compute with."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, name: str, *shape: int, mean: float = 0.0, std: float | None = None) -> torch.Tensor:
        """Normal; vectors with deviation 0.2, others with that of their inputs, so that nothing explodes."""
        if name not in self:
            spread = std or (0.2 if len(shape) < 2 else math.prod(shape[1:]) ** -0.5)
            self[name] = mean + spread * torch.randn(shape, generator=self._generator)
        assert self[name].shape == shape, name
        return self[name].double()

    def linear(self, name: str, x: torch.Tensor, outputs: int, *, bias: bool = True) -> torch.Tensor:
        x = x @ self(f"{name}.weight", outputs, x.shape[-1]).T
        return x + self(f"{name}.bias", outputs) if bias else x

    def conv(
        self,
        name: str,
        x: torch.Tensor,
        outputs: int,
        size: int = 3,
        *,
        bias: bool = True,
        groups: int = 1,
        **options: int,
    ) -> torch.Tensor:
        weight = self(f"{name}.weight", outputs, x.shape[1] // groups, size, size)
        shift = self(f"{name}.bias", outputs) if bias else None
        return F.conv2d(x, weight, shift, groups=groups, **{"padding": size // 2, **options})

    def scaled(self, name: str, x: torch.Tensor) -> torch.Tensor:  # [B, C, ...]
        """Scale and shift of a norm, per channel."""
        shape = (1, -1, *[1] * (x.ndim - 2))
        weight, bias = self(f"{name}.weight", x.shape[1], mean=1.0), self(f"{name}.bias", x.shape[1])
        return x * weight.view(shape) + bias.view(shape)


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + (-x).exp())


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    scores = (scores - scores.amax(-1, keepdim=True)).exp()
    return scores / scores.sum(-1, keepdim=True) @ v


# VQGAN, in taming's names


def _group_norm(made: Made, name: str, x: torch.Tensor) -> torch.Tensor:
    parts = x.unflatten(1, (32, -1))
    mean = parts.mean((2, 3, 4), keepdim=True)
    variance = (parts - mean).square().mean((2, 3, 4), keepdim=True)
    return made.scaled(name, ((parts - mean) / (variance + 1e-6).sqrt()).flatten(1, 2))


def _residual(made: Made, name: str, x: torch.Tensor, outputs: int) -> torch.Tensor:
    h = made.conv(f"{name}.conv1", silu(_group_norm(made, f"{name}.norm1", x)), outputs)
    h = made.conv(f"{name}.conv2", silu(_group_norm(made, f"{name}.norm2", h)), outputs)
    return h + (x if x.shape[1] == outputs else made.conv(f"{name}.nin_shortcut", x, outputs, 1))


def _map_attention(made: Made, name: str, x: torch.Tensor) -> torch.Tensor:
    h = _group_norm(made, f"{name}.norm", x)
    q, k, v = (made.conv(f"{name}.{part}", h, x.shape[1], 1).flatten(2).mT for part in "qkv")
    return x + made.conv(f"{name}.proj_out", attention(q, k, v).mT.reshape(x.shape), x.shape[1], 1)


def _middle(made: Made, side: str, x: torch.Tensor) -> torch.Tensor:
    x = _residual(made, f"{side}.mid.block_1", x, x.shape[1])
    return _residual(made, f"{side}.mid.block_2", _map_attention(made, f"{side}.mid.attn_1", x), x.shape[1])


def vqgan_encode(made: Made, x: torch.Tensor, widths: Sequence[int], latent: int, code_dim: int) -> torch.Tensor:
    """One residual block a level, attention in the last."""
    x = made.conv("encoder.conv_in", x, widths[0])
    for level, width in enumerate(widths):
        x = _residual(made, f"encoder.down.{level}.block.0", x, width)
        if level == len(widths) - 1:
            x = _map_attention(made, f"encoder.down.{level}.attn.0", x)
        else:
            padded = F.pad(x, (0, 1, 0, 1))
            x = made.conv(f"encoder.down.{level}.downsample.conv", padded, width, stride=2, padding=0)
    x = silu(_group_norm(made, "encoder.norm_out", _middle(made, "encoder", x)))
    return made.conv("quant_conv", made.conv("encoder.conv_out", x, latent), code_dim, 1)


def vqgan_decode(made: Made, x: torch.Tensor, widths: Sequence[int], latent: int) -> torch.Tensor:
    x = made.conv("decoder.conv_in", made.conv("post_quant_conv", x, latent, 1), widths[-1])
    x = _middle(made, "decoder", x)
    for level in reversed(range(len(widths))):
        for number in range(2):
            x = _residual(made, f"decoder.up.{level}.block.{number}", x, widths[level])
            if level == len(widths) - 1:
                x = _map_attention(made, f"decoder.up.{level}.attn.{number}", x)
        if level > 0:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = made.conv(f"decoder.up.{level}.upsample.conv", x, widths[level])
    return made.conv("decoder.conv_out", silu(_group_norm(made, "decoder.norm_out", x)), 3)


def lc_codes(made: Made, count: int, features: int, code_dim: int, *, deep: bool) -> torch.Tensor:  # [K, D]
    """VQGAN-LC's codebook: all features, projected."""
    x = made("tok_embeddings.weight", count, features, std=1.0)
    if not deep:
        return made.linear("codebook_projection", x, code_dim)
    return made.linear("codebook_projection.2", made.linear("codebook_projection.0", x, 256).clamp(min=0), code_dim)


def nearest(z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:  # [B, D, h, w], [K, D] -> [B, h, w]
    """By squared distance; no vector may lie so that rounding could decide."""
    distances = (z.movedim(1, -1).unsqueeze(-2) - codes).square().sum(-1)  # [B, h, w, K]
    first, second = distances.topk(2, largest=False).values.unbind(-1)
    assert (second - first > 1e-4 * second).all()
    return distances.argmin(-1)


# MGVQ: DC-AE, in EfficientViT's names


def _rms_norm(made: Made, name: str, x: torch.Tensor) -> torch.Tensor:
    return made.scaled(name, x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt())


def _batch_norm(made: Made, name: str, x: torch.Tensor) -> torch.Tensor:
    mean = made(f"{name}.running_mean", x.shape[1]).view(1, -1, 1, 1)
    spread = made(f"{name}.running_var", x.shape[1], mean=1.0, std=0.05).view(1, -1, 1, 1)
    made.setdefault(f"{name}.num_batches_tracked", torch.tensor(7))
    return made.scaled(name, (x - mean) / (spread + 1e-5).sqrt())


def _dcae_block(made: Made, name: str, x: torch.Tensor, *, deep: bool, decoder: bool) -> torch.Tensor:
    width = x.shape[1]
    if not deep:
        h = made.conv(f"{name}.main.conv1.conv", x, width)
        h = made.conv(f"{name}.main.conv2.conv", h.clamp(min=0) if decoder else silu(h), width, bias=False)
        return x + (_batch_norm if decoder else _rms_norm)(made, f"{name}.main.conv2.norm", h)
    heads = made.conv(f"{name}.context_module.main.qkv.conv", x, 3 * width, 1, bias=False)
    q, k, v = heads.flatten(2).unflatten(1, (-1, 3, 32)).mT.unbind(2)  # [B, heads, N, E] each
    weights = q.clamp(min=0) @ k.clamp(min=0).mT  # [B, heads, N, N]
    h = (weights / (weights.sum(-1, keepdim=True) + 1e-15) @ v).mT.reshape(x.shape)
    h = made.conv(f"{name}.context_module.main.proj.conv", h, width, 1, bias=False)
    x = x + _rms_norm(made, f"{name}.context_module.main.proj.norm", h)
    inside = f"{name}.local_module.main"
    h = silu(made.conv(f"{inside}.inverted_conv.conv", x, 8 * width, 1))
    h, gate = made.conv(f"{inside}.depth_conv.conv", h, 8 * width, groups=8 * width).chunk(2, dim=1)
    h = made.conv(f"{inside}.point_conv.conv", h * silu(gate), width, 1, bias=False)
    return x + _rms_norm(made, f"{inside}.point_conv.norm", h)


def mgvq_encode(
    made: Made, x: torch.Tensor, widths: Sequence[int], depths: Sequence[int], code_dim: int, groups: int
) -> torch.Tensor:
    """The last stage has attention; without blocks in the first, the input is halved at once."""
    if depths[0]:
        x = made.conv("encoder.project_in.conv", x, widths[0])
    else:
        x = F.pixel_unshuffle(made.conv("encoder.project_in.conv.conv", x, widths[1] // 4), 2)
    for stage, depth in enumerate(depths):
        deep, name = stage == len(depths) - 1, f"encoder.stages.{stage}.op_list"
        for number in range(depth):
            x = _dcae_block(made, f"{name}.{number}", x, deep=deep, decoder=False)
        if depth and not deep:
            outputs = widths[stage + 1]
            h = F.pixel_unshuffle(made.conv(f"{name}.{depth}.main.conv.conv", x, outputs // 4), 2)
            x = h + F.pixel_unshuffle(x, 2).unflatten(1, (outputs, -1)).mean(2)
    h = made.conv("encoder.project_out.main.op_list.0.conv", x, code_dim)
    return made.conv("quant_conv", h + x.unflatten(1, (code_dim, -1)).mean(2), code_dim, 1, groups=groups)


def mgvq_decode(
    made: Made, x: torch.Tensor, widths: Sequence[int], depths: Sequence[int], groups: int
) -> torch.Tensor:
    x = made.conv("post_quant_conv", x, x.shape[1], 1, groups=groups)
    h = made.conv("decoder.project_in.main.conv", x, widths[-1])
    x = h + x.repeat_interleave(widths[-1] // x.shape[1], 1)
    for stage in reversed(range(len(widths))):
        deep, first, name = stage == len(widths) - 1, 0, f"decoder.stages.{stage}.op_list"
        if depths[stage] and not deep:
            h, first = made.conv(f"{name}.0.main.conv.conv", x, 4 * widths[stage]), 1
            x = F.pixel_shuffle(h + x.repeat_interleave(h.shape[1] // x.shape[1], 1), 2)
        for number in range(first, first + depths[stage]):
            x = _dcae_block(made, f"{name}.{number}", x, deep=deep, decoder=True)
    x = _rms_norm(made, "decoder.project_out.op_list.0", x).clamp(min=0)
    if depths[0]:
        return made.conv("decoder.project_out.op_list.2.conv", x, 3)
    return F.pixel_shuffle(made.conv("decoder.project_out.op_list.2.conv.conv", x, 12), 2)


# LlamaGen's transformer


def _turned(x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:  # [B, heads, L, E]
    """Pairs of neighbouring channels as complex numbers, turned; those of the class are multiplied by zero."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())  # [B, heads, L, E/2]
    quarter = x.shape[-1] // 4
    turns = torch.zeros(x.shape[2], 2 * quarter, dtype=torch.complex128)
    for position in range(1, x.shape[2]):
        for axis, place in enumerate(divmod(position - 1, grid[1])):
            for i in range(quarter):
                angle = place / 10000 ** (i / quarter)
                turns[position, axis * quarter + i] = complex(math.cos(angle), math.sin(angle))
    return torch.view_as_real(pairs * turns).flatten(-2)


def llamagen_logits(
    made: Made,
    codes: torch.Tensor,  # [B, S]
    labels: torch.Tensor,  # [B]
    *,
    layers: int,
    heads: int,
    width: int,
    num_codes: int,
    num_classes: int,
    grid: tuple[int, int],
) -> torch.Tensor:  # [B, 1 + S, K]
    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * made(f"{name}.weight", width, mean=1.0)

    first = made("cls_embedding.embedding_table.weight", num_classes + 1, width, std=1.0)[labels].unsqueeze(1)
    x = torch.cat([first, made("tok_embeddings.weight", num_codes, width, std=1.0)[codes]], dim=1)
    earlier = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    for layer in range(layers):
        name = f"layers.{layer}"
        h = made.linear(f"{name}.attention.wqkv", norm(f"{name}.attention_norm", x), 3 * width, bias=False)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in h.split(width, dim=-1))
        h = attention(_turned(q, grid), _turned(k, grid), v, earlier).transpose(1, 2).flatten(2)
        x = x + made.linear(f"{name}.attention.wo", h, width, bias=False)
        h, hidden = norm(f"{name}.ffn_norm", x), math.ceil(int(8 * width / 3) / 256) * 256
        gate = made.linear(f"{name}.feed_forward.w1", h, hidden, bias=False)
        h = silu(gate) * made.linear(f"{name}.feed_forward.w3", h, hidden, bias=False)
        x = x + made.linear(f"{name}.feed_forward.w2", h, width, bias=False)
    return made.linear("output", norm("norm", x), num_codes, bias=False)


# DiT and SiT


def _sines(side: int, width: int) -> torch.Tensor:  # [side^2, W]
    rows = []
    for row in range(side):
        for column in range(side):
            angles = [[place / 10000 ** (4 * i / width) for i in range(width // 4)] for place in (column, row)]
            rows.append([wave(angle) for part in angles for wave in (math.sin, math.cos) for angle in part])
    return torch.tensor(rows, dtype=torch.float64)


def dit_output(
    made: Made,
    latent: torch.Tensor,  # [B, C, h, h]
    time: torch.Tensor,  # [B]
    labels: torch.Tensor,  # [B]
    *,
    layers: int,
    heads: int,
    width: int,
    patch: int,
    num_classes: int,
    outputs: int,
) -> torch.Tensor:  # [B, outputs, h, h]
    def normed(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale) + shift

    side = latent.shape[2] // patch
    weight = made("x_embedder.proj.weight", width, latent.shape[1], patch, patch)
    x = F.conv2d(latent, weight, made("x_embedder.proj.bias", width), stride=patch).flatten(2).mT
    made["pos_embed"] = _sines(side, width).float().unsqueeze(0)
    x = x + _sines(side, width)
    rates = torch.tensor([10000 ** (-i / 128) for i in range(128)], dtype=torch.float64)
    angles = time[:, None].double() * rates
    h = silu(made.linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], dim=1), width))
    condition = made.linear("t_embedder.mlp.2", h, width)
    condition = condition + made("y_embedder.embedding_table.weight", num_classes + 1, width, std=1.0)[labels]
    condition = silu(condition).unsqueeze(1)
    for layer in range(layers):
        name = f"blocks.{layer}"
        steering = made.linear(f"{name}.adaLN_modulation.1", condition, 6 * width).chunk(6, dim=-1)
        h = made.linear(f"{name}.attn.qkv", normed(x, *steering[:2]), 3 * width)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in h.split(width, dim=-1))
        h = made.linear(f"{name}.attn.proj", attention(q, k, v).transpose(1, 2).flatten(2), width)
        x = x + steering[2] * h
        h = made.linear(f"{name}.mlp.fc1", normed(x, *steering[3:5]), 4 * width)
        h = h / 2 * (1 + (math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)).tanh())
        x = x + steering[5] * made.linear(f"{name}.mlp.fc2", h, width)
    steering = made.linear("final_layer.adaLN_modulation.1", condition, 2 * width).chunk(2, dim=-1)
    x = made.linear("final_layer.linear", normed(x, *steering), patch**2 * outputs)
    x = x.view(len(x), side, side, patch, patch, outputs)
    return torch.einsum("byxpqc->bcypxq", x).flatten(4).flatten(2, 3)
