"""The quantizers of vector-quantize-pytorch: how to make and call them rightly."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import truth
from modules import Arguments, Kind, Pick, vectors

import vqkernels.compat.vector_quantize_pytorch as vqp

BASE = {"dim": 4, "codebook_size": 6}


def vq_input(module: Any, pick: Pick) -> Arguments:
    """An input of any of the options, and some of the others."""
    first = module.accept_image_fmap or module.accept_3d_fmap or not module.channel_last
    x = vectors(module.dim, pick, first)
    arguments: Arguments = {"x": x}
    if pick(False, True):
        arguments["mask"] = torch.rand(x.movedim(1, -1).shape[:-1] if first else x.shape[:-1]) > 0.3
    return {**arguments, "freeze_codebook": pick(None, True), "sample_codebook_temp": pick(None, 0.5)}


def vq_indices(module: Any, pick: Pick) -> Arguments:
    heads = (module.heads,) if module.heads > 1 else ()
    return {"indices": torch.randint(-1, module.codebook_size, (2, pick(3, 0), *heads))}


def vq_update(module: Any, pick: Pick) -> Arguments:
    first = module.accept_image_fmap or module.accept_3d_fmap or not module.channel_last
    heads = (module.heads,) if module.heads > 1 else ()
    x = torch.randn(2, 5, module.dim)
    return {"x": x.movedim(-1, 1) if first else x, "indices": torch.randint(0, module.codebook_size, (2, 5, *heads))}


def vq_expired(module: Any, pick: Pick) -> Arguments:
    return {"x": torch.randn(2, 5, module.heads * module._codebook.embed.shape[2]), "mask": None}


def vq_options() -> list[Arguments]:
    return [
        {**BASE, "threshold_ema_dead_code": 2, "kmeans_init": True, "kmeans_iters": 2},
        {**BASE, "heads": 2, "codebook_dim": 3, "separate_codebook_per_head": True, "use_cosine_sim": True},
        {**BASE, "heads": 2, "codebook_dim": 2, "stochastic_sample_codes": True, "channel_last": False},
        {**BASE, "learnable_codebook": True, "ema_update": False, "accept_image_fmap": True, "sync_update_v": 0.1},
        {**BASE, "affine_param": True, "codebook_diversity_loss_weight": 0.1, "orthogonal_reg_weight": 0.1},
        {**BASE, "directional_reparam": True, "threshold_ema_dead_code": 1},
        {**BASE, "straight_through": True, "rotation_trick": False, "commitment_use_cross_entropy_loss": True},
        {
            **BASE,
            "learnable_codebook": True,
            "ema_update": False,
            "in_place_codebook_optimizer": partial(torch.optim.SGD, lr=0.1),
        },
    ]


def stack_input(module: Any, pick: Pick, *, masked: bool = True, first: str = "channel_first") -> Arguments:
    """For residual stacks: vectors, where they go."""
    dim = getattr(module.project_in, "in_features", module.codebook_dim)
    flag = bool(getattr(module, first))
    x = vectors(dim, pick, flag)
    mask = pick(None, torch.rand(x.movedim(1, -1).shape[:-1] if flag else x.shape[:-1]) > 0.3)
    return {"x": x, **({"mask": mask} if masked else {}), "return_all_codes": pick(False, True)}


def stack_indices(module: Any, pick: Pick, *, size: int = 6) -> Arguments:
    return {"indices": torch.randint(0, size, (2, 3, module.num_quantizers))}


def grouped_indices(module: Any, pick: Pick, *, size: int = 6) -> Arguments:
    return {"indices": torch.randint(0, size, (module.groups, 2, 3, module.rvqs[0].num_quantizers))}


def grouped_input(module: Any, pick: Pick, *, masked: bool = True) -> Arguments:
    x = vectors(module.dim, pick, module.accept_image_fmap)
    shape = x.movedim(1, -1).shape[:-1] if module.accept_image_fmap else x.shape[:-1]
    return {"x": x, **({"mask": pick(None, torch.rand(shape) > 0.3)} if masked else {})}


VQ_NAMES = (
    "decay",
    "eps",
    "kmeans_init",
    "use_cosine_sim",
    "threshold_ema_dead_code",
    "channel_last",
    "accept_3d_fmap",
)
STACK = {"dim": 4, "codebook_size": 6, "num_quantizers": 3}

STACKS = {
    "VectorQuantize": Kind(
        vqp.VectorQuantize,
        vq_options,
        {
            "forward": vq_input,
            "get_codes_from_indices": vq_indices,
            "get_output_from_indices": vq_indices,
            "update_indices": vq_update,
            "expire_codes_": vq_expired,
            "maybe_split_heads_from_input": lambda module, pick: {"x": torch.randn(2, 5, 4)},
        },
        {"forward": truth.of_vector_quantize},
    ),
    "ResidualVQ": Kind(
        vqp.ResidualVQ,
        lambda: [
            {**STACK, "quantize_dropout": True, "kmeans_init": True, "kmeans_iters": 2},
            {**STACK, "codebook_dim": 2, "shared_codebook": True, "accept_image_fmap": True},
            {**STACK, "beam_size": 2, "threshold_ema_dead_code": 2},
            {**STACK, "implicit_neural_codebook": True, "mlp_kwargs": {"depth": 1}, "channel_last": False},
            {"dim": 4, "codebook_size": (6, 5), "diveq": True, "threshold_ema_dead_code": 1},
        ],
        {
            "forward": stack_input,
            "get_codes_from_indices": partial(stack_indices, size=5),
            "get_output_from_indices": partial(stack_indices, size=5),
        },
        further=VQ_NAMES,
    ),
    "GroupedResidualVQ": Kind(
        vqp.GroupedResidualVQ,
        lambda: [
            {**STACK, "groups": 2, "quantize_dropout": True},
            {**STACK, "groups": 2, "accept_image_fmap": True, "use_cosine_sim": True},
        ],
        {
            "forward": grouped_input,
            "get_codes_from_indices": grouped_indices,
            "get_output_from_indices": grouped_indices,
        },
        further=("codebook_size", "num_quantizers", "quantize_dropout_cutoff_index", *VQ_NAMES),
    ),
    "SimVQ": Kind(
        vqp.SimVQ,
        lambda: [BASE, {**BASE, "frozen_codebook_dim": 3, "channel_first": True, "rotation_trick": False}],
        {
            "forward": lambda module, pick: {"x": vectors(4, pick, module.channel_first)},
            "indices_to_codes": lambda module, pick: {"indices": torch.randint(-1, 6, (2, pick(3, 0)))},
        },
        {"forward": truth.of_sim_vq},
    ),
    "ResidualSimVQ": Kind(
        vqp.ResidualSimVQ,
        lambda: [{**STACK, "quantize_dropout": True}, {**STACK, "channel_first": True}],
        {
            "forward": lambda module, pick: {"x": vectors(4, pick, module.channel_first)},
            "get_codes_from_indices": stack_indices,
            "get_output_from_indices": stack_indices,
        },
        further=("frozen_codebook_dim", "commitment_weight"),
    ),
    "RandomProjectionQuantizer": Kind(
        vqp.RandomProjectionQuantizer,
        lambda: [{**BASE, "codebook_dim": 3, "num_codebooks": heads, "norm": heads > 1} for heads in (1, 2)],
        {"forward": lambda module, pick: {"x": torch.randn(pick(2, 0), 5, 4)}},
        further=VQ_NAMES,
    ),
}
