"""``ResidualVQ``, ``GroupedResidualVQ`` and the other quantizers made of several, beside the originals.

Oracle: the original in float64.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from vqp_oracle import assert_trains_alike, original

from vqkernels.compat import vector_quantize_pytorch as compat

SEQUENCE = (2, 20, 8)
MASK = torch.rand(2, 20, generator=torch.Generator().manual_seed(0)) > 0.3
LEARNED: dict[str, Any] = {"learnable_codebook": True, "ema_update": False}
RESIDUAL: dict[str, Any] = {"dim": 8, "num_quantizers": 3, "codebook_size": 32}
SIM: dict[str, Any] = {"dim": 8, "codebook_size": 32}

CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...], dict[str, Any]]] = {
    "residual": ("ResidualVQ", RESIDUAL, SEQUENCE, {"return_all_codes": True}),
    "projection": ("ResidualVQ", {**RESIDUAL, "codebook_dim": 4}, SEQUENCE, {}),
    "cosine": ("ResidualVQ", {**RESIDUAL, "use_cosine_sim": True, "rotation_trick": False}, SEQUENCE, {}),
    "sizes": ("ResidualVQ", {"dim": 8, "codebook_size": (32, 16, 8)}, SEQUENCE, {"return_all_codes": True}),
    "dropout": ("ResidualVQ", {**RESIDUAL, "quantize_dropout": True}, SEQUENCE, {"return_all_codes": True}),
    "dropout by twos": (
        "ResidualVQ",
        {
            **RESIDUAL,
            "num_quantizers": 5,
            "quantize_dropout": True,
            "quantize_dropout_multiple_of": 2,
            "quantize_dropout_cutoff_index": 1,
        },
        SEQUENCE,
        {"rand_quantize_dropout_fixed_seed": 3},
    ),
    "shared": ("ResidualVQ", {**RESIDUAL, "shared_codebook": True}, SEQUENCE, {}),
    "gradient handed on": ("ResidualVQ", {**RESIDUAL, **LEARNED, "quant_grad_frac": 0.3}, SEQUENCE, {}),
    "mask": ("ResidualVQ", RESIDUAL, SEQUENCE, {"mask": MASK}),
    "implicit codes": ("ResidualVQ", {**RESIDUAL, "implicit_neural_codebook": True}, (2, 6, 8), {}),
    "implicit projected codes": (
        "ResidualVQ",
        {
            **RESIDUAL,
            "implicit_neural_codebook": True,
            "codebook_dim": 4,
            "mlp_kwargs": {"dim_hidden": 6, "depth": 2},
        },
        (2, 6, 8),
        {"return_all_codes": True},
    ),
    "beam": ("ResidualVQ", {**RESIDUAL, **LEARNED, "beam_size": 3}, SEQUENCE, {}),
    "beam, mask": ("ResidualVQ", {**RESIDUAL, **LEARNED, "beam_size": 3}, SEQUENCE, {"mask": MASK}),
    "beam, weights": (
        "ResidualVQ",
        {
            **RESIDUAL,
            **LEARNED,
            "beam_size": 4,
            "eval_beam_size": 2,
            "beam_score_quantizer_weights": [1.0, 0.5, 2.0],
            "quantize_dropout": True,
        },
        SEQUENCE,
        {},
    ),
    "diveq": ("ResidualVQ", {**RESIDUAL, "diveq": True}, SEQUENCE, {}),
    "groups": ("GroupedResidualVQ", {**RESIDUAL, "groups": 2}, SEQUENCE, {"return_all_codes": True}),
    "groups, dropout": ("GroupedResidualVQ", {**RESIDUAL, "groups": 2, "quantize_dropout": True}, SEQUENCE, {}),
    "map of groups": ("GroupedResidualVQ", {**RESIDUAL, "groups": 2, "accept_image_fmap": True}, (2, 8, 4, 4), {}),
    "sim": ("SimVQ", SIM, SEQUENCE, {}),
    "sim, ste": ("SimVQ", {**SIM, "rotation_trick": False, "channel_first": True}, (2, 8, 4, 5), {}),
    "sim, network": (
        "SimVQ",
        {
            **SIM,
            "codebook_transform": nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 8)),
            "frozen_codebook_dim": 5,
            "input_to_quantize_commit_loss_weight": 0.1,
            "commitment_weight": 3.0,
        },
        SEQUENCE,
        {},
    ),
    "residual sim": ("ResidualSimVQ", {**SIM, "num_quantizers": 3}, SEQUENCE, {"return_all_codes": True}),
    "residual sim of maps": (
        "ResidualSimVQ",
        {**SIM, "num_quantizers": 3, "quantize_dropout": True, "channel_first": True},
        (2, 8, 4, 5),
        {"return_all_codes": True},
    ),
    "hierarchy": (
        "HierarchicalVQ",
        {**SIM, "scales": (1, 2, 5), "kmeans_init": False, "threshold_ema_dead_code": 0},
        (2, 8, 7),
        {},
    ),
    "hierarchy of maps": (
        "HierarchicalVQ",
        {
            **SIM,
            "scales": (1, (2, 3), 4),
            "kmeans_init": False,
            "threshold_ema_dead_code": 0,
            "accept_image_fmap": True,
            "shared_codebook": False,
            "codebook_size": (8, 16, 32),
            "share_quant_resi": 2,
            "channel_first": False,
            "nested_dropout": 0.7,
            "orthogonal_reg_weight": 0.1,
        },
        (2, 4, 4, 8),
        {"return_cutoff": False},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_trains_like_the_original(case: str) -> None:
    name, arguments, shape, options = CASES[case]
    torch.manual_seed(3)
    theirs = getattr(original, name)(**copy.deepcopy(arguments))
    ours = getattr(compat, name)(**copy.deepcopy(arguments))
    # in evaluation the original still adds noise
    assert_trains_alike(theirs, ours, shape, options, skip=lambda seen: case == "diveq" and seen == "3 0")


@pytest.mark.parametrize("num_codebooks", [1, 3])
def test_random_projections_label_like_the_original(num_codebooks: int) -> None:
    """Oracle: the original; labels are integers, and no two codes are as near as rounding could tell."""
    torch.manual_seed(3)
    arguments = {"dim": 8, "codebook_size": 32, "codebook_dim": 4, "num_codebooks": num_codebooks}
    theirs, ours = (library.RandomProjectionQuantizer(**arguments) for library in (original, compat))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 50, 8)
    labels = ours(x)
    assert torch.equal(labels, theirs(x))
    torch.testing.assert_close(ours(x, indices=labels), theirs(x, indices=labels), rtol=1e-5, atol=0)
    theirs.load_state_dict(ours.state_dict())
