"""Weights of ViT-MAE's encoder in the names of MAE's own release, out of transformers. W width."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from models.pretrained.huggingface import VIT_MAE, load_pretrained

# the two spellings of transformers -> MAE's
_RENAMED = (
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^(?:encoder\.layer|layers)\.", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.(?:attention\.)?(query|key|value|[qkv]_proj)\.", r".attn.\1."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
_THREE = {"query": 0, "key": 1, "value": 2, "q_proj": 0, "k_proj": 1, "v_proj": 2}


def mae_weights(path: str) -> dict[str, torch.Tensor]:
    """Of a folder, or of a name on the hub, such as facebook/vit-mae-base."""
    return in_names_of_mae(load_pretrained(VIT_MAE, "ViTMAEModel", path).state_dict())


def in_names_of_mae(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of a ViTMAEModel, renamed; query, key and value of a block become one matrix."""
    renamed: dict[str, torch.Tensor] = {}
    parts: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for name, weight in weights.items():
        for pattern, ours in _RENAMED:
            name = re.sub(pattern, ours, name)
        split = re.fullmatch(r"(.*\.attn\.)(\w+)(\.\w+)", name)
        if split is not None and split[2] in _THREE:
            parts.setdefault(f"{split[1]}qkv{split[3]}", []).append((_THREE[split[2]], weight))
        else:
            renamed[name] = weight
    for name, three in parts.items():
        renamed[name] = torch.cat([weight for _, weight in sorted(three, key=lambda part: part[0])])
    return renamed
