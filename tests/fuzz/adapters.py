"""The quantizers of other libraries: how to make and call them rightly."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import truth
from modules import Arguments, Kind, Pick, vectors

from vqkernels.compat import diffusers, llamagen, seed_voken, taming
from vqkernels.compat.encodec import quantization as encodec
from vqkernels.compat.encodec.quantization import core_vq

_FOLDER = tempfile.TemporaryDirectory()


@functools.cache
def used_codes() -> str:
    """A file with the codes in use, of six."""
    path = Path(_FOLDER.name) / "used.npy"
    np.save(path, np.array([0, 2, 5]))
    return str(path)


def image(channels: int, pick: Pick) -> torch.Tensor:  # [B, C, H, W]
    return torch.randn(*pick((2, channels, 3, 2), (1, channels, 1, 1), (0, channels, 2, 2))) * pick(1.0, 1.0, 100.0)


def map_input(module: Any, pick: Pick) -> Arguments:
    return {"z": image(module.embedding.weight.shape[1], pick)}


def entry_input(module: Any, pick: Pick) -> Arguments:
    return {"indices": torch.randint(0, 3, (2, 6)), "shape": pick(None, (2, 3, 2, 4), (2, -1, 4))}


def renamed_input(module: Any, pick: Pick) -> Arguments:
    return {"inds": torch.randint(0, 3, (2, 6))}


def gumbel_input(module: Any, pick: Pick) -> Arguments:
    return {"z": image(module.proj.in_channels, pick), "temp": pick(None, 0.5), "return_logits": pick(False, True)}


def sequence(channels: int, pick: Pick) -> torch.Tensor:  # [B, C, N]
    return vectors(channels, pick, first=True)


def rows_input(module: Any, pick: Pick, name: str = "x") -> Arguments:
    return {name: vectors(module.embed.shape[1], pick)}


MAP_METHODS = {
    "forward": map_input,
    "get_codebook_entry": entry_input,
    "remap_to_used": renamed_input,
    "unmap_to_all": renamed_input,
}


def of_map(make: Any, **names: Any) -> Kind:
    """A quantizer of feature maps with and without codes left out."""
    return Kind(
        make,
        lambda: [names, {**names, "remap": used_codes(), "unknown_index": "extra"}, {**names, "remap": used_codes()}],
        MAP_METHODS,
        {"forward": truth.of_map},
    )


IMAGES = {
    "taming.VectorQuantizer": Kind(
        taming.VectorQuantizer,
        lambda: [{"n_e": 6, "e_dim": 4, "beta": 0.25}],
        {"forward": map_input, "get_codebook_entry": entry_input},
        {"forward": truth.of_map},
    ),
    "taming.VectorQuantizer2": of_map(taming.VectorQuantizer2, n_e=6, e_dim=4, beta=0.25, sane_index_shape=True),
    "taming.EMAVectorQuantizer": of_map(taming.EMAVectorQuantizer, n_embed=6, embedding_dim=4, beta=0.25, decay=0.9),
    "taming.EmbeddingEMA": Kind(
        taming.EmbeddingEMA,
        lambda: [{"num_tokens": 6, "codebook_dim": 4, "decay": 0.9, "eps": 1e-5}],
        {
            "forward": lambda module, pick: {"embed_id": torch.randint(0, 6, pick((3,), (0,), ()))},
            "cluster_size_ema_update": lambda module, pick: {"new_cluster_size": torch.rand(6)},
            "embed_avg_ema_update": lambda module, pick: {"new_embed_avg": torch.randn(6, 4)},
            "weight_update": lambda module, pick: {"num_tokens": 6},
        },
    ),
    "taming.GumbelQuantize": Kind(
        taming.GumbelQuantize,
        lambda: [
            {"num_hiddens": 4, "embedding_dim": 3, "n_embed": 6},
            {"num_hiddens": 4, "embedding_dim": 4, "n_embed": 6, "straight_through": False, "use_vqinterface": False},
            {"num_hiddens": 4, "embedding_dim": 4, "n_embed": 6, "remap": used_codes()},
        ],
        {"forward": gumbel_input, "get_codebook_entry": entry_input},
    ),
    "diffusers.VectorQuantizer": of_map(diffusers.VectorQuantizer, n_e=6, vq_embed_dim=4, beta=0.25, legacy=False),
    "llamagen.VectorQuantizer": Kind(
        llamagen.VectorQuantizer,
        lambda: [
            {"n_e": 6, "e_dim": 4, "beta": 0.25, "entropy_loss_ratio": 0.1, "l2_norm": flag, "show_usage": flag}
            for flag in (True, False)
        ],
        {
            "forward": map_input,
            "get_codebook_entry": lambda module, pick: {
                "indices": torch.randint(0, 6, (12,)),
                "shape": pick(None, (2, 4, 3, 2)),
                "channel_first": True,
            },
        },
        {"forward": truth.of_map},
    ),
}


def signs_input(module: Any, pick: Pick) -> Arguments:
    x = image(4, pick)
    return {"x": x, "mask": pick(None, torch.rand(len(x), x[0, 0].numel() if len(x) else 4) > 0.5)}


def signs_entry(module: Any, pick: Pick) -> Arguments:
    order = pick("pre", "post")
    bits = module.factorized_bits[order != "pre"] if module.token_factorization else module.codebook_dim
    return {"x": torch.randint(0, 2, (2, 6)), "bhwc": (2, 3, 2, bits), "order": order}


IMAGES |= {
    "seed_voken.IndexPropagationQuantize": Kind(
        seed_voken.IndexPropagationQuantize,
        lambda: [
            {"n_e": 6, "e_dim": 4},
            {"n_e": 6, "e_dim": 4, "use_entropy_loss": True, "entropy_temperature": 0.5},
            {"n_e": 6, "e_dim": 4, "use_entropy_loss": True, "remap": used_codes(), "unknown_index": "extra"},
        ],
        MAP_METHODS,
    ),
    "seed_voken.LFQ": Kind(
        seed_voken.LFQ,
        lambda: [
            {"dim": 4},
            {"dim": 4, "codebook_size": 4, "num_codebooks": 2, "sample_minimization_weight": 0.5},
            {"codebook_size": 16, "token_factorization": True, "factorized_bits": (1, 3)},
        ],
        {
            "forward": signs_input,
            "get_codebook_entry": signs_entry,
            "decode": lambda module, pick: {"x": torch.randint(0, 4, (3, module.num_codebooks))},
            "indices_to_bits": lambda module, pick: {"x": torch.randint(0, 4, pick((3,), (0,), ()))},
            "bits_to_indices": lambda module, pick: {"bits": torch.rand(3, module.codebook_dim) > 0.5},
        },
    ),
}

LAYER = {"dim": 4, "codebook_size": 6, "kmeans_iters": 2}
AUDIO = {
    "encodec.EuclideanCodebook": Kind(
        core_vq.EuclideanCodebook,
        lambda: [LAYER, {**LAYER, "kmeans_init": True, "threshold_ema_dead_code": 0}],
        {
            "forward": rows_input,
            "encode": rows_input,
            "decode": lambda module, pick: {"embed_ind": torch.randint(-1, 6, pick((2, 3), (0,), ()))},
            "init_embed_": functools.partial(rows_input, name="data"),
            "expire_codes_": functools.partial(rows_input, name="batch_samples"),
        },
        {"encode": truth.of_rows},
    ),
    "encodec.VectorQuantization": Kind(
        core_vq.VectorQuantization,
        lambda: [{**LAYER, "codebook_dim": width, "kmeans_init": width is None} for width in (None, 3)],
        {
            "forward": lambda module, pick: {"x": sequence(4, pick)},
            "encode": lambda module, pick: {"x": sequence(4, pick)},
            "decode": lambda module, pick: {"embed_ind": torch.randint(0, 6, (2, 5))},
        },
        {"encode": truth.of_sequence},
    ),
    "encodec.ResidualVectorQuantization": Kind(
        core_vq.ResidualVectorQuantization,
        lambda: [{"num_quantizers": 3, **LAYER}, {"num_quantizers": 2, **LAYER, "codebook_dim": 2}],
        {
            "forward": lambda module, pick: {"x": sequence(4, pick), "n_q": pick(None, 1)},
            "encode": lambda module, pick: {"x": sequence(4, pick), "n_q": pick(None, 1)},
            "decode": lambda module, pick: {"q_indices": torch.randint(0, 6, (pick(1, 2), 2, 5))},
        },
        {"encode": truth.of_first_layer},
        further=("dim", "codebook_size", "codebook_dim", "decay", "epsilon", "kmeans_init", "commitment_weight"),
    ),
    "encodec.ResidualVectorQuantizer": Kind(
        encodec.ResidualVectorQuantizer,
        lambda: [{"dimension": 4, "n_q": 3, "bins": 6, "kmeans_iters": 2}],
        {
            "forward": lambda module, pick: {
                "x": sequence(4, pick),
                "sample_rate": 100,
                "bandwidth": pick(None, 0.5),
            },
            "encode": lambda module, pick: {"x": sequence(4, pick), "sample_rate": 100, "bandwidth": pick(None, 0.5)},
            "decode": lambda module, pick: {"codes": torch.randint(0, 6, (2, 2, 5))},
            "get_num_quantizers_for_bandwidth": lambda module, pick: {"sample_rate": 100, "bandwidth": 1.0},
        },
    ),
}
