"""VQGAN's network. Oracles: the published counts, diffusers' network with the same weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from needs import import_library
from network_checks import (
    assert_bf16_is_near,
    assert_checkpointing_changes_nothing,
    assert_layout_does_not_matter,
    assert_learns,
    millions,
)
from torch import nn
from torch.nn import functional as F

from models.networks.vqgan import VQGANConfig, VQGANDecoder, VQGANEncoder, vqgan_f8, vqgan_f16, vqgan_pocket
from vqkernels.testing import assert_bitwise_equal

TINY = VQGANConfig(base_channels=32, multipliers=(1, 2), res_blocks=1, attention_levels=(1,), latent_channels=32)


@pytest.mark.parametrize(("config", "parts", "total"), [(vqgan_f16(), [29.3, 42.5], 71.9), (vqgan_f8(), None, 70.1)])
def test_numbers_of_weights_are_the_published_ones(
    config: VQGANConfig, parts: list[float] | None, total: float
) -> None:
    """Published with 16384 codes of 8 dimensions; of f8 the sum alone."""
    with torch.device("meta"):
        sizes = millions(VQGANEncoder(config, 8)), millions(VQGANDecoder(config, 8))
    assert parts is None or [round(size, 1) for size in sizes] == parts
    assert round(sum(sizes) + 16384 * 8 / 1e6, 1) == total


def test_the_pocket_network_is_small() -> None:
    with torch.device("meta"):
        assert 2 < millions(VQGANEncoder(vqgan_pocket(), 8), VQGANDecoder(vqgan_pocket(), 8)) < 4
    assert [config.downsample for config in (vqgan_pocket(), vqgan_f8(), vqgan_f16())] == [8, 8, 16]


def test_patches_are_pixels_folded_into_channels() -> None:
    """What a network without patches makes of folded images, and folded back."""
    config = dataclasses.replace(vqgan_pocket(), patch_size=2)
    encoder, decoder = VQGANEncoder(config, 8), VQGANDecoder(config, 8)
    images = torch.randn(1, 3, 8, 16)
    z = encoder(images)
    assert z.shape == (1, 8, 2, 4)
    reconstruction = decoder(z)
    assert reconstruction.shape == images.shape
    encoder.patch_size = decoder.patch_size = 1
    folded = F.pixel_unshuffle(images, 2)
    assert_bitwise_equal(encoder(folded), z)
    assert_bitwise_equal(decoder(z), F.pixel_unshuffle(reconstruction, 2))


@pytest.mark.parametrize("groups", [1, 4])
def test_shapes_and_gradients(groups: int) -> None:
    config = VQGANConfig(**{**vars(TINY), "conv_groups": groups})
    encoder, decoder = VQGANEncoder(config, 8), VQGANDecoder(config, 8)
    images = torch.randn(2, 3, 8, 16)
    latents = encoder(images)
    assert latents.shape == (2, 8, 4, 8)
    assert decoder(latents).shape == images.shape
    assert isinstance(decoder.output, nn.Conv2d)
    # a bias of the keys moves all scores of a query alike: the softmax gives it no gradient
    for module in (*encoder.modules(), *decoder.modules()):
        if hasattr(module, "key"):
            module.key.bias = None
    assert_learns(lambda: decoder(encoder(images)), encoder, decoder)


def test_groups_do_not_mix_around_the_quantizer() -> None:
    config = VQGANConfig(**{**vars(TINY), "conv_groups": 4})
    for layer, channels in ((VQGANEncoder(config, 8).to_code, 32), (VQGANDecoder(config, 8).from_code, 8)):
        z = torch.zeros(1, channels, 2, 2, requires_grad=True)
        outputs = layer.out_channels // 4
        layer(z)[:, outputs : 2 * outputs].sum().backward()  # the second group
        seen = z.grad.abs().amax(dim=(0, 2, 3)).nonzero().flatten().tolist()
        assert seen == list(range(channels // 4, channels // 2))


@torch.no_grad()
def test_is_the_network_of_diffusers() -> None:
    peer = import_library("diffusers.models.autoencoders.vq_model").VQModel(
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(32, 64),
        latent_channels=32,
        vq_embed_dim=8,
        num_vq_embeddings=16,
    )
    encoder, decoder = VQGANEncoder(TINY, 8), VQGANDecoder(TINY, 8)
    _copy(peer.encoder, encoder)
    _copy(peer.decoder, decoder)
    for ours, theirs in ((encoder.to_code, peer.quant_conv), (decoder.from_code, peer.post_quant_conv)):
        ours.load_state_dict(theirs.state_dict())
    images, z = torch.randn(2, 3, 16, 24), torch.randn(2, 8, 8, 12)
    for ours, theirs in (
        (encoder.double()(images.double()), peer.double().encode(images.double()).latents),
        (decoder.double()(z.double()), peer.decode(z.double(), force_not_quantize=True).sample),
    ):
        assert ours.shape == theirs.shape
        assert (ours - theirs).norm() < 1e-9 * theirs.norm()


def _copy(theirs: nn.Module, ours: nn.Module) -> None:
    """Layer by layer: diffusers keeps the residual blocks of a level and its attention in two lists."""
    peers: list[nn.Module] = [theirs.conv_in]
    levels = theirs.down_blocks if hasattr(theirs, "down_blocks") else theirs.up_blocks
    middle = [theirs.mid_block.resnets[0], theirs.mid_block.attentions[0], theirs.mid_block.resnets[1]]
    inner = []
    for level in levels:
        attentions = getattr(level, "attentions", None) or [None] * len(level.resnets)
        for block, attention in zip(level.resnets, attentions, strict=True):
            inner += [block] if attention is None else [block, attention]
        inner += getattr(level, "downsamplers", None) or getattr(level, "upsamplers", None) or []
    peers += [*inner, *middle] if hasattr(theirs, "down_blocks") else [*middle, *inner]
    mine: list[nn.Module] = [ours.input]
    for layers in (*ours.levels, ours.middle) if isinstance(ours, VQGANEncoder) else (ours.middle, *ours.levels):
        mine += layers
    for layer, peer in zip(
        [*mine, ours.norm, ours.output], [*peers, theirs.conv_norm_out, theirs.conv_out], strict=True
    ):
        weights = list(peer.parameters())
        for weight, value in zip(layer.parameters(), weights, strict=True):
            weight.copy_(value.reshape(weight.shape))


def test_layouts_and_precisions() -> None:
    encoder, decoder = VQGANEncoder(TINY, 8), VQGANDecoder(TINY, 8)
    for module, x in ((encoder, torch.randn(2, 3, 16, 16)), (decoder, torch.randn(2, 8, 8, 8))):
        assert_layout_does_not_matter(module, x)
        assert_bf16_is_near(module, x)
        assert_checkpointing_changes_nothing(module, x)


def test_configs_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="base_channels: expected a multiple of 32, got 48"):
        VQGANConfig(base_channels=48)
    with pytest.raises(ValueError, match="res_blocks: expected at least 1, got 0"):
        VQGANConfig(res_blocks=0)
    with pytest.raises(ValueError, match="attention_levels: expected levels from 0 to 4, got 5"):
        VQGANConfig(attention_levels=(4, 5))
    with pytest.raises(ValueError, match="conv_groups: expected a divisor of 256 channels, got 3"):
        VQGANConfig(conv_groups=3)
    with pytest.raises(ValueError, match="conv_groups: expected a divisor of the width 6, got 4"):
        VQGANEncoder(VQGANConfig(conv_groups=4), 6)
