"""Configurations of priors go to JSON and back, and a union of them knows which is which."""

from __future__ import annotations

import json
from typing import Any

import pytest

from models.config_json import parse, to_json
from models.networks.code_shape import CodeShape
from models.networks.depth_head import DepthHeadConfig
from models.networks.dit import DiTConfig
from models.networks.flow_head import FlowHeadConfig
from models.networks.gpt import GPTConfig, epsilon_llamagen_l, mgvq_xxl, seq_base
from models.networks.ldm_unet import UNetConfig
from models.priors.autoregressive import AutoregressiveConfig
from models.priors.concept import ConceptConfig
from models.priors.diffusion import DDPMConfig, DiffusionConfig, FlowConfig
from models.priors.diffusion_sampling import DiffusionSamplingConfig
from models.priors.grouped import GroupedConfig
from models.priors.masked import MaskedConfig
from models.priors.maskgit_sampling import MaskGITSamplingConfig
from models.priors.sampling import SamplingConfig
from models.priors.video import VideoConfig

AnyPrior = AutoregressiveConfig | VideoConfig | GroupedConfig | MaskedConfig | DiffusionConfig | ConceptConfig

PRIORS = [
    AutoregressiveConfig(network=seq_base(), pkeep=0.8),
    VideoConfig(network=GPTConfig(), scored="all"),
    GroupedConfig(network=mgvq_xxl(), head=DepthHeadConfig(structure="residual", heads=4)),
    MaskedConfig(network=GPTConfig(causal=False)),
    DiffusionConfig(network=DiTConfig(), process=DDPMConfig()),
    DiffusionConfig(network=DiTConfig(), process=FlowConfig()),
    DiffusionConfig(network=UNetConfig(), process=DDPMConfig(learned_variance=False)),
    ConceptConfig(network=epsilon_llamagen_l(), head=FlowHeadConfig()),
]


@pytest.mark.parametrize("config", PRIORS, ids=lambda config: config.kind)
def test_priors_survive_json(config: Any) -> None:
    assert parse(AnyPrior, json.loads(to_json(config)), "prior") == config


@pytest.mark.parametrize(
    "config",
    [
        CodeShape(num_codes=16, grid=(3, 4), groups=2, code_dim=8),
        SamplingConfig(top_k=5),
        MaskGITSamplingConfig(),
        DiffusionSamplingConfig(method="ddim", eta=1.0),
    ],
    ids=lambda config: type(config).__name__,
)
def test_other_configurations_survive_json(config: Any) -> None:
    assert parse(type(config), json.loads(to_json(config)), "config") == config
