"""The quantizers of vector-quantize-pytorch without a table of codes, and a few more: how to make and call them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import truth
from modules import Arguments, Kind, Pick, vectors
from stacks import VQ_NAMES

import vqkernels.compat.vector_quantize_pytorch as vqp

LEVELS = [5, 4, 3]
FSQ_OPTIONS = [
    {"levels": LEVELS},
    {"levels": LEVELS, "dim": 4, "num_codebooks": 2},
    {"levels": [3, 3], "preserve_symmetry": True, "noise_dropout": 0.5, "orthogonal_rotation": True},
    {"levels": LEVELS, "channel_first": True, "bound_hard_clamp": True, "return_indices": False},
]
LFQ_OPTIONS = [
    {"dim": 3},
    {"codebook_size": 8, "dim": 4, "num_codebooks": 2, "cosine_sim_project_in": True},
    {"dim": 4, "spherical": True, "soft_clamp_input_value": 2.0, "frac_per_sample_entropy": 0.5},
    {"dim": 3, "channel_first": True, "orthogonal_rotation": True, "experimental_softplus_entropy_loss": True},
]


def flags(pick: Pick, *names: str) -> Arguments:
    return {name: pick(False, True) for name in names}


def fsq_input(module: Any, pick: Pick) -> Arguments:
    return {"z": vectors(module.dim, pick, module.channel_first)}


def levelled(module: Any, pick: Pick, name: str = "z") -> Arguments:
    return {name: torch.randn(*pick((2, 5), (0,), (1,)), module.codebook_dim) * pick(1.0, 100.0)}


def indexed(module: Any, pick: Pick) -> Arguments:
    """Indices of as many codebooks as there are, of at least two codes each."""
    tail = (module.num_codebooks,) if module.keep_num_codebooks_dim else ()
    return {"indices": torch.randint(0, 2, (2, pick(3, 0), *tail))}


def lfq_input(module: Any, pick: Pick) -> Arguments:
    first = module.channel_first is True
    x = vectors(module.dim, pick, first)
    shape = x.movedim(1, -1).shape[:-1] if first else x.shape[:-1]
    mask = pick(None, torch.rand(shape) > 0.3, torch.rand(shape[0]) > 0.3)
    return {"x": x, "mask": mask, "inv_temperature": pick(100.0, 1.0), **flags(pick, "return_loss_breakdown")}


def latent_input(module: Any, pick: Pick) -> Arguments:
    return {"z": vectors(module.dim, pick, first=True)}


def two_of_latents(module: Any, pick: Pick) -> Arguments:
    return {"z": torch.randn(3, 4), "zhat": torch.randn(3, 4), "reduce": pick("mean", "sum", "none")}


def logits(module: Any, pick: Pick) -> torch.Tensor:
    return torch.randn(*pick((2, 5), (0,), ()), module.bits) * pick(1.0, 100.0)


def words(module: Any, pick: Pick) -> Arguments:
    odds = logits(module, pick)
    indices = torch.randint(0, module.num_codes, odds.shape[:-1])
    given = pick("indices", "one_hot")
    value = indices if given == "indices" else torch.nn.functional.one_hot(indices, module.num_codes)
    return {"logits": odds, given: value, **flags(pick, "sum_bits")}


def drawn(module: Any, pick: Pick) -> Arguments:
    names = ("straight_through", "calc_aux_loss", "deterministic", "return_indices", "reduce_aux_kl_loss")
    return {"logits": logits(module, pick), "temperature": pick(1.0, 0.5), **flags(pick, *names)}


def stack_indices(module: Any, pick: Pick) -> Arguments:
    return {"indices": torch.randint(0, 2, (2, 3, module.num_quantizers))}


def stack_input(module: Any, pick: Pick, *, masked: bool = False) -> Arguments:
    first = bool(getattr(module, "is_channel_first", getattr(module, "_channel_first", None)))
    x = vectors(module.dim, pick, first)
    shape = x.movedim(1, -1).shape[:-1] if first else x.shape[:-1]
    mask = {"mask": pick(None, torch.rand(shape) > 0.3)} if masked else {}
    return {"x": x, **mask, **flags(pick, "return_all_codes")}


def grouped_input(module: Any, pick: Pick, *, masked: bool = False) -> Arguments:
    x = vectors(module.dim, pick, module.split_dim == 1)
    mask = {"mask": pick(None, torch.rand(x.select(module.split_dim, 0).shape) > 0.3)} if masked else {}
    return {"x": x, **mask, **flags(pick, "return_all_codes")}


def grouped_indices(module: Any, pick: Pick) -> Arguments:
    return {"indices": torch.randint(0, 2, (module.groups, 2, 3, module.rvqs[0].num_quantizers))}


def levels_input(module: Any, pick: Pick) -> Arguments:
    size = (pick(2, 1), *module.level_shapes[-1])
    x = torch.randn(*size, module.dim)
    x = x.movedim(-1, 1) if module.channel_first else x
    return {"x": x, "mask": pick(None, torch.rand(size) > 0.3), **flags(pick, "return_cutoff")}


def levels_indices(module: Any, pick: Pick) -> Arguments:
    return {
        "indices": [torch.randint(0, 6, (2, *shape)) for shape in module.level_shapes],
        "full_shape": pick(None, module.level_shapes[-1]),
    }


def evolution(**options: Any) -> Arguments:
    return {"encoder": torch.nn.Identity(), "decoder": torch.nn.Identity(), "pop_size": 4, **options}


def genes(module: Any, pick: Pick, name: str = "pop_bits") -> Arguments:
    return {name: (torch.rand(4, module.lfq.codebook_dim) > 0.5).float()}


def fitness(decoded: torch.Tensor, genes: torch.Tensor) -> torch.Tensor:
    return decoded.sum(dim=-1)


def around(quantizer: torch.nn.Module) -> vqp.Sequential:
    return vqp.Sequential(torch.nn.Identity(), quantizer)


STACKED = {"num_quantizers": 3, "dim": 4}
GROUPED = {**STACKED, "groups": 2}

SCALARS = {
    "FSQ": Kind(
        vqp.FSQ,
        lambda: FSQ_OPTIONS,
        {
            "forward": fsq_input,
            "quantize": levelled,
            "bound": levelled,
            "symmetry_preserving_bound": levelled,
            "maybe_apply_noise": partial(levelled, name="bounded_z"),
            "codes_to_indices": partial(levelled, name="zhat"),
            "indices_to_codes": indexed,
            "indices_to_level_indices": indexed,
        },
    ),
    "ResidualFSQ": Kind(
        vqp.ResidualFSQ,
        lambda: [
            {"levels": LEVELS, "num_quantizers": 3, "quantize_dropout": True},
            {**STACKED, "levels": LEVELS, "is_channel_first": True},
            {**STACKED, "levels": LEVELS, "soft_clamp_input_value": [1.0, 2.0, 3.0], "bound_hard_clamp": False},
        ],
        {"forward": stack_input, "get_codes_from_indices": stack_indices, "get_output_from_indices": stack_indices},
        further=("preserve_symmetry", "noise_dropout", "allowed_dtypes", "projection_has_bias"),
    ),
    "GroupedResidualFSQ": Kind(
        vqp.GroupedResidualFSQ,
        lambda: [{**GROUPED, "levels": LEVELS}, {**GROUPED, "levels": [3, 3], "accept_image_fmap": True}],
        {
            "forward": grouped_input,
            "get_codes_from_indices": grouped_indices,
            "get_output_from_indices": grouped_indices,
        },
        further=("levels", "num_quantizers", "quantize_dropout", "quantize_dropout_cutoff_index", "bound_hard_clamp"),
    ),
    "LFQ": Kind(
        vqp.LFQ,
        lambda: LFQ_OPTIONS,
        {
            "forward": lfq_input,
            "indices_to_codes": indexed,
            "bits_to_codes": partial(levelled, name="bits"),
            "maybe_l2norm": partial(levelled, name="t"),
        },
        {"forward": truth.of_signs},
    ),
    "ResidualLFQ": Kind(
        vqp.ResidualLFQ,
        lambda: [
            {**STACKED, "codebook_size": 16, "quantize_dropout": True},
            {**STACKED, "codebook_size": 8, "channel_first": True, "soft_clamp_input_value": 2.0},
        ],
        {
            "forward": partial(stack_input, masked=True),
            "get_codes_from_indices": stack_indices,
            "get_output_from_indices": stack_indices,
        },
        further=("entropy_loss_weight", "commitment_loss_weight", "spherical", "diversity_gamma", "channel_first"),
    ),
    "GroupedResidualLFQ": Kind(
        vqp.GroupedResidualLFQ,
        lambda: [{**GROUPED, "codebook_size": 4}, {**GROUPED, "codebook_size": 8, "accept_image_fmap": True}],
        {
            "forward": partial(grouped_input, masked=True),
            "get_codes_from_indices": grouped_indices,
            "get_output_from_indices": grouped_indices,
        },
        further=("codebook_size", "num_quantizers", "quantize_dropout", "entropy_loss_weight", "channel_first"),
    ),
    "LatentQuantize": Kind(
        vqp.LatentQuantize,
        lambda: [
            {"levels": LEVELS, "dim": 3, "in_place_codebook_optimizer": partial(torch.optim.SGD, lr=0.1)},
            {"levels": 4, "dim": 5, "codebook_dim": 2, "num_codebooks": 2, "optimize_values": False},
        ],
        {
            "forward": latent_input,
            "quantize": levelled,
            "codes_to_indices": partial(levelled, name="zhat"),
            "indices_to_codes": indexed,
            "quantization_loss": two_of_latents,
            "commitment_loss": two_of_latents,
        },
        {"quantize": truth.of_values},
    ),
    "FSP": Kind(
        vqp.FSP,
        lambda: [
            {"levels": LEVELS, "quantize_rate": 0.5},
            {"levels": LEVELS, "dim": 4, "channel_first": True, "act_name": "laplace", "vector_norm": "kurt"},
            {"levels": [1, 2], "act_name": "normal", "need_inv_act": True, "vector_norm": "none"},
        ],
        {
            "forward": lambda module, pick: {**fsq_input(module, pick), "eps": pick(None, 1e-3)},
            "quantize_act_value": lambda module, pick: {
                "act_z": torch.rand(2, 5, module.codebook_dim),
                "eps": 1e-3,
            },
            "level_indices_to_indices": lambda module, pick: {
                "level_indices": torch.zeros(2, 5, module.codebook_dim)
            },
            "indices_to_level_indices": lambda module, pick: {"indices": torch.randint(0, 2, (2, 3))},
            "indices_to_codes": lambda module, pick: {"indices": torch.randint(0, 2, (2, 3)), "eps": 1e-3},
        },
    ),
    "BinaryMapper": Kind(
        vqp.BinaryMapper,
        lambda: [{"bits": 3, "deterministic_on_eval": True}, {"bits": 1, "kl_loss_threshold": 0.1}],
        {
            "forward": drawn,
            "log_prob": words,
            "binary_entropy": lambda module, pick: {"logits": logits(module, pick)},
            "calc_aux_loss": lambda module, pick: {
                "logits": logits(module, pick),
                **flags(pick, "reduce_aux_kl_loss"),
            },
        },
    ),
    "HierarchicalVQ": Kind(
        vqp.HierarchicalVQ,
        lambda: [
            {"dim": 4, "codebook_size": 6, "scales": (1, 2, 3), "kmeans_iters": 2, "nested_dropout": 0.5},
            {
                "dim": 4,
                "codebook_size": 6,
                "scales": [1, (2, 3)],
                "accept_image_fmap": True,
                "shared_codebook": False,
                "kmeans_init": False,
                "channel_first": False,
            },
        ],
        {"forward": levels_input, "get_output_from_indices": levels_indices},
    ),
    "EvoLFQ": Kind(
        vqp.EvoLFQ,
        lambda: [evolution(dim=3), evolution(codebook_size=8, elitism_count=2)],
        {
            "forward": lambda module, pick: {"x": torch.randn(2, 3)},
            "encode": lambda module, pick: {"x": torch.randn(2, 3), **flags(pick, "return_signs")},
            "decode_bits": partial(genes, name="bits"),
            "init_random_population": lambda module, pick: {"pop_size": pick(None, 3), "shape": pick((), (2, 3))},
            "init_population_from_data": lambda module, pick: {"x": torch.randn(2, 3), "pop_size": pick(None, 3)},
            "uniform_crossover": lambda module, pick: {"parent1": torch.rand(4, 3), "parent2": torch.rand(4, 3)},
            "mutate": partial(genes, name="population"),
            "tournament_selection": lambda module, pick: {
                **genes(module, pick, "population"),
                "fitnesses": torch.rand(4),
            },
            "step": lambda module, pick: {**genes(module, pick), "fitness_fn": fitness, "batch_size": pick(None, 3)},
        },
        further=("entropy_loss_weight", "spherical", "channel_first"),
    ),
    "Sequential": Kind(
        around,
        lambda: [{"quantizer": vqp.FSQ(LEVELS)}, {"quantizer": vqp.VectorQuantize(3, 6, kmeans_init=True)}],
        {"forward": lambda module, pick: {"x": vectors(3, pick)}},
        further=("fns", "z", *VQ_NAMES),
    ),
}
