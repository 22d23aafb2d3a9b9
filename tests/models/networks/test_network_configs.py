"""Configs of networks: JSON and back, told apart by their kind, and networks that compile."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import nn

from models.config_json import parse, to_json
from models.networks.aggregator import AggregatorConfig
from models.networks.concept_dit import ConceptDiT, ConceptDiTConfig, concept_dit_pocket
from models.networks.dcae import DCAEConfig, DCAEDecoder, DCAEEncoder, dcae_f8, dcae_f16, dcae_f32, dcae_pocket
from models.networks.discriminators import (
    DiscriminatorConfig,
    PatchGANConfig,
    StyleGAN2Config,
    build_discriminator,
    stylegan2_pocket,
)
from models.networks.maskgit_conv import (
    MaskGITConvConfig,
    MaskGITConvDecoder,
    MaskGITConvEncoder,
    maskgit_conv_pocket,
)
from models.networks.patch import PatchConfig
from models.networks.vit import (
    ConceptEncoder,
    ConceptEncoderConfig,
    ViT,
    ViTConfig,
    concept_encoder_pocket,
    vit_pocket,
)
from models.networks.vqgan import VQGANConfig, VQGANDecoder, VQGANEncoder, vqgan_f8, vqgan_f16, vqgan_pocket

Network = (
    PatchConfig | VQGANConfig | MaskGITConvConfig | DCAEConfig | ConceptEncoderConfig | ViTConfig | ConceptDiTConfig
)
CONFIGS = [
    *(PatchConfig(), vqgan_f16(), vqgan_f8(), vqgan_pocket(), MaskGITConvConfig(), maskgit_conv_pocket()),
    *(dcae_f8(), dcae_f16(), dcae_f32(), dcae_pocket(), ConceptEncoderConfig(), concept_encoder_pocket()),
    *(ViTConfig(), vit_pocket(), ConceptDiTConfig(), concept_dit_pocket()),
    *(PatchGANConfig(), StyleGAN2Config(), stylegan2_pocket()),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_json_and_back(config: Any) -> None:
    assert parse(Network | DiscriminatorConfig, json.loads(to_json(config)), "network") == config


def test_kinds_differ() -> None:
    kinds = {type(config): config.kind for config in CONFIGS}
    assert len(set(kinds.values())) == len(kinds)
    aggregator = AggregatorConfig(mode="add")
    assert parse(AggregatorConfig, json.loads(to_json(aggregator)), "aggregator") == aggregator


def build(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A pocket network and what it takes."""
    images, latents = torch.randn(2, 3, 64, 64), torch.randn(2, 8, 8, 8)
    attention = dataclasses.replace(maskgit_conv_pocket(), attention_pairs=1)
    if name == "concept_encoder":
        return ConceptEncoder(concept_encoder_pocket(), 16), (images,)
    if name == "vit":
        return ViT(vit_pocket(), channels=8, num_classes=10), (latents,)
    if name == "concept_dit":
        network = ConceptDiT(concept_dit_pocket(), 16, tokens=16, channels=8, grid=(8, 8))
        return network, (latents, torch.rand(2), torch.randn(2, 16, 16), torch.tensor([1, 2]))
    autoencoders: dict[str, nn.Module] = {
        "vqgan_encoder": VQGANEncoder(vqgan_pocket(), 8),
        "vqgan_decoder": VQGANDecoder(vqgan_pocket(), 8),
        "maskgit_conv_encoder": MaskGITConvEncoder(attention, 8),
        "maskgit_conv_decoder": MaskGITConvDecoder(attention, 8),
        "dcae_encoder": DCAEEncoder(dcae_pocket(), 8),
        "dcae_decoder": DCAEDecoder(dcae_pocket(), 8),
        "patchgan": build_discriminator(PatchGANConfig(channels=8)),
        "stylegan2": build_discriminator(stylegan2_pocket()),
    }
    return autoencoders[name], (latents if name.endswith("decoder") else images,)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("vqgan_encoder", "vqgan_decoder", "maskgit_conv_encoder", "maskgit_conv_decoder", "dcae_encoder"),
        *("dcae_decoder", "patchgan", "stylegan2", "concept_encoder", "concept_dit", "vit"),
    ],
)
def test_compiles_without_a_break_under_autocast(name: str) -> None:
    network, inputs = build(name)
    network.eval()  # drop-path draws
    torch._dynamo.reset()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = network(*inputs)
        compiled = torch.compile(network, backend="eager", fullgraph=True)(*inputs)
    torch.testing.assert_close(compiled, expected, rtol=0.1, atol=0.1)
