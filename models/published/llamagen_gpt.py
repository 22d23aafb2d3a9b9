"""LlamaGen's published transformers over codes, conditioned on classes. W width."""

from __future__ import annotations

from models.networks.code_shape import CodeShape
from models.networks.gpt import GPTConfig
from models.priors.autoregressive import AutoregressiveConfig, AutoregressivePrior
from models.published.layout import Layout, PublishedPrior, Untold, Weights, count, heads_of, with_kinds

_HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2560: 40}  # of each published width


def _read(weights: Weights, untold: Untold) -> tuple[PublishedPrior, dict[str, str]]:
    num_codes, width = weights["tok_embeddings.weight"].shape
    layers = count(weights, lambda layer: f"layers.{layer}.attention.wqkv.weight")
    # the class comes without a rotation, as zeros: the released code multiplies its query and key by them
    network = GPTConfig(layers=layers, heads=heads_of(width, _HEADS, untold), width=width, prefix_rotation="zero")
    codes = CodeShape(
        num_codes=num_codes,
        grid=untold.grid or (16, 16),
        num_classes=len(weights["cls_embedding.embedding_table.weight"]) - 1,
    )
    config = AutoregressiveConfig(network=network)
    return PublishedPrior(config, codes, AutoregressivePrior(config, codes)), weight_names(layers)


LAYOUT = Layout(wrapped=("model", "module", "state_dict"), ignored=(), read=_read)


def weight_names(layers: int) -> dict[str, str]:
    """Our name of every weight -> theirs."""
    names = {
        "gpt.embed.table": "tok_embeddings",
        "gpt.prefix": "cls_embedding.embedding_table",
        "gpt.norm": "norm",
        "gpt.head": "output",
    }
    for layer in range(layers):
        ours, theirs = f"gpt.blocks.{layer}", f"layers.{layer}"
        names |= {
            f"{ours}.attention_norm": f"{theirs}.attention_norm",
            f"{ours}.attention.qkv": f"{theirs}.attention.wqkv",
            f"{ours}.attention.output": f"{theirs}.attention.wo",
            f"{ours}.mlp_norm": f"{theirs}.ffn_norm",
            f"{ours}.mlp.gate": f"{theirs}.feed_forward.w1",
            f"{ours}.mlp.up": f"{theirs}.feed_forward.w3",
            f"{ours}.mlp.down": f"{theirs}.feed_forward.w2",
        }
    return with_kinds(names, ("weight",))
