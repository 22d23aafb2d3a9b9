"""``VectorQuantize`` beside the original: outputs, losses, gradients, buffers and checkpoints over training steps.

Oracle: the original in float64. Options under which the original is wrong are in ``test_vq_defects.py``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vqp_oracle import assert_trains_alike, original

import vqkernels.compat.vector_quantize_pytorch as adapters
from vqkernels.compat.vector_quantize_pytorch import VectorQuantize

LEARNED: dict[str, Any] = {"learnable_codebook": True, "ema_update": False}
SEQUENCE = (2, 20, 8)
MASK = torch.rand(2, 20, generator=torch.Generator().manual_seed(0)) > 0.3


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)


CASES: dict[str, tuple[dict[str, Any], tuple[int, ...], dict[str, Any]]] = {
    "default": ({}, SEQUENCE, {}),
    "breakdown": ({"orthogonal_reg_weight": 0.5}, SEQUENCE, {"return_loss_breakdown": True}),
    "one token": ({}, (20, 8), {}),
    "ste": ({"rotation_trick": False}, SEQUENCE, {}),
    "cosine": ({"use_cosine_sim": True}, SEQUENCE, {}),
    "decay": ({"decay": 0.99, "eps": 1e-3, "commitment_weight": 0.25}, SEQUENCE, {}),
    "no commitment": ({"commitment_weight": 0.0}, SEQUENCE, {}),
    "learned": (LEARNED, SEQUENCE, {}),
    "learned, synchronous": ({**LEARNED, "rotation_trick": False, "sync_update_v": 0.3}, SEQUENCE, {}),
    "learned, gradient to codes alone": ({**LEARNED, "route_gradients_to_input": False}, SEQUENCE, {}),
    "shared heads": ({"heads": 4, "codebook_dim": 4}, SEQUENCE, {}),
    "separate heads": ({"heads": 4, "codebook_dim": 4, "separate_codebook_per_head": True}, SEQUENCE, {}),
    "separate cosine heads": (
        {"heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True, "use_cosine_sim": True},
        SEQUENCE,
        {},
    ),
    "one separate head": ({"separate_codebook_per_head": True}, SEQUENCE, {}),
    "projection": ({"codebook_dim": 4, "layernorm_after_project_in": True}, SEQUENCE, {}),
    "image": ({"accept_image_fmap": True}, (2, 8, 4, 5), {}),
    "image, heads": ({"accept_image_fmap": True, "heads": 2, "codebook_dim": 4}, (2, 8, 4, 5), {}),
    "volume": ({"accept_3d_fmap": True}, (2, 8, 2, 3, 4), {}),
    "channel first": ({"channel_last": False}, (2, 8, 20), {}),
    "mask": ({}, SEQUENCE, {"mask": MASK}),
    "lengths": ({"return_zeros_for_masked_padding": False}, SEQUENCE, {"lens": torch.tensor([4, 15])}),
    "mask, learned cross entropy": (
        {**LEARNED, "commitment_use_cross_entropy_loss": True},
        SEQUENCE,
        {"mask": MASK},
    ),
    "cross entropy": ({**LEARNED, "commitment_use_cross_entropy_loss": True}, SEQUENCE, {}),
    "cross entropy of heads": (
        {**LEARNED, "commitment_use_cross_entropy_loss": True, "heads": 2, "codebook_dim": 4},
        SEQUENCE,
        {},
    ),
    "diversity": ({**LEARNED, "codebook_diversity_loss_weight": 0.5}, SEQUENCE, {}),
    "diversity of frozen cosine heads": (
        {
            "codebook_diversity_loss_weight": 0.5,
            "codebook_diversity_temperature": 3.0,
            "use_cosine_sim": True,
            "freeze_codebook": True,
            "heads": 2,
            "codebook_dim": 4,
            "separate_codebook_per_head": True,
        },
        SEQUENCE,
        {},
    ),
    "orthogonal": ({"orthogonal_reg_weight": 0.5}, SEQUENCE, {}),
    "orthogonal, active": ({"orthogonal_reg_weight": 0.5, "orthogonal_reg_active_codes_only": True}, SEQUENCE, {}),
    "orthogonal, some": ({"orthogonal_reg_weight": 0.5, "orthogonal_reg_max_codes": 9}, SEQUENCE, {}),
    "frozen": ({"freeze_codebook": True}, SEQUENCE, {}),
    "frozen for a call": ({}, SEQUENCE, {"freeze_codebook": True}),
    "manual update": ({"manual_ema_update": True}, SEQUENCE, {}),
    "update weight": ({}, SEQUENCE, {"ema_update_weight": torch.linspace(0, 1, 32)}),
    "update weight, function": ({}, SEQUENCE, {"ema_update_weight": lambda sums, counts: counts.clamp(max=1)}),
    "accumulated": ({}, SEQUENCE, {"accum_ema_update": True}),
    "in place": ({**LEARNED, "in_place_codebook_optimizer": sgd}, SEQUENCE, {"return_loss_breakdown": True}),
    "several": ({}, SEQUENCE, {"topk": 3}),
    "several, image": ({"accept_image_fmap": True, "use_cosine_sim": True}, (2, 8, 4, 5), {"topk": 3}),
    "several, mask": ({**LEARNED, "orthogonal_reg_weight": 0.1}, SEQUENCE, {"topk": 40, "mask": MASK}),
    "soft": (
        {"straight_through": True, "rotation_trick": False, "route_gradients_to_input": False, "ema_update": False},
        SEQUENCE,
        {},
    ),
    "diveq": ({"directional_reparam": True, "threshold_ema_dead_code": 1e-9}, SEQUENCE, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_trains_like_the_original(case: str) -> None:
    arguments, shape, options = CASES[case]
    torch.manual_seed(3)
    theirs = original.VectorQuantize(8, 32, **arguments)
    ours = VectorQuantize(8, 32, **arguments)
    assert_trains_alike(theirs, ours, shape, options)


# layouts, pooling and draws of the original's own forward
NOT_OFFERED = {
    *("mask_from_channel", "mask_to_channel", "to_channel_first", "to_channel_last", "flatten_indices"),
    *("flatten_spatial", "unflatten_spatial", "indices_to_spatial", "pool_residual", "upsample_to_full"),
    "sample_nested_cutoff",
}
KINDS: dict[str, dict[str, Any]] = {
    "VectorQuantize": {},
    "ResidualVQ": {"num_quantizers": 2},
    "GroupedResidualVQ": {"num_quantizers": 2},
    "SimVQ": {},
    "ResidualSimVQ": {"num_quantizers": 2},
    "RandomProjectionQuantizer": {"codebook_dim": 4},
    "HierarchicalVQ": {"scales": (1, 2)},
}


@pytest.mark.parametrize("name", KINDS)
def test_what_other_code_reaches_for_is_there(name: str) -> None:
    theirs, ours = (getattr(kind, name)(dim=8, codebook_size=16, **KINDS[name]) for kind in (original, adapters))
    public = {attribute for attribute in dir(theirs) if not attribute.startswith("_")}
    assert public - set(dir(ours)) <= NOT_OFFERED


@pytest.mark.parametrize("separate", [False, True])
def test_heads_are_split_like_the_original_does(separate: bool) -> None:
    options = {"heads": 2, "codebook_dim": 4, "separate_codebook_per_head": separate}
    x = torch.randn(2, 5, 8)
    want, got = (
        kind.VectorQuantize(8, 32, **options).maybe_split_heads_from_input(x) for kind in (original, adapters)
    )
    assert torch.equal(got, want)


def test_a_bridge_makes_the_codes() -> None:
    torch.manual_seed(3)
    theirs = original.VectorQuantize(8, 32, vq_bridge=torch.nn.Linear(8, 8))
    assert_trains_alike(theirs, VectorQuantize(8, 32, vq_bridge=torch.nn.Linear(8, 8)), SEQUENCE)
