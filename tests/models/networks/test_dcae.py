"""DC-AE. Oracles: the counts of MGVQ's models, diffusers' network with the same weights, softmax-free attention."""

from __future__ import annotations

import pytest
import torch
from needs import import_library
from network_checks import (
    assert_bf16_is_near,
    assert_checkpointing_changes_nothing,
    assert_layout_does_not_matter,
    assert_learns,
    disturb,
    millions,
)
from torch import nn

from models.networks import dcae
from models.networks.dcae import DCAEConfig, DCAEDecoder, DCAEEncoder, LinearAttention

TINY = DCAEConfig(
    widths=(16, 16, 32), encoder_depths=(0, 1, 1), decoder_depths=(0, 1, 1), conv_stages=2, head_dim=8, conv_groups=4
)
WHOLE = DCAEConfig(
    widths=(8, 16, 32), encoder_depths=(1, 1, 2), decoder_depths=(2, 1, 1), conv_stages=2, head_dim=8, conv_groups=2
)


@pytest.mark.parametrize(
    ("config", "encoder", "decoder", "total"),
    [
        (dcae.dcae_f8(), 52.0, 75.9, 128.2),
        (dcae.dcae_f16(), 87.1, 128.7, 216.0),
        (dcae.dcae_f32(), 123.2, 200.2, 323.6),
    ],
)
def test_numbers_of_weights_are_those_of_mgvq(
    config: DCAEConfig, encoder: float, decoder: float, total: float
) -> None:
    with torch.device("meta"):
        parts = DCAEEncoder(config, 32), DCAEDecoder(config, 32)
    assert [round(millions(part), 1) for part in parts] == [encoder, decoder]
    assert round(millions(*parts) + 32768 * 8 / 1e6, 1) == total  # with four codebooks of 8192 codes


def test_the_pocket_network_is_small() -> None:
    with torch.device("meta"):
        assert 0.5 < millions(DCAEEncoder(dcae.dcae_pocket(), 32), DCAEDecoder(dcae.dcae_pocket(), 32)) < 1.5
    assert [
        config.downsample for config in (dcae.dcae_pocket(), dcae.dcae_f8(), dcae.dcae_f16(), dcae.dcae_f32())
    ] == [8, 8, 16, 32]


@pytest.mark.parametrize("config", [TINY, WHOLE], ids=["half", "whole"])
def test_shapes_and_gradients(config: DCAEConfig) -> None:
    encoder, decoder = DCAEEncoder(config, 8), DCAEDecoder(config, 8)
    images = torch.randn(2, 3, 16, 24)
    latents = encoder(images)
    assert latents.shape == (2, 8, 4, 6)
    assert decoder(latents).shape == images.shape
    assert isinstance(decoder.output, nn.Conv2d)
    assert_learns(lambda: decoder(encoder(images)), encoder, decoder)


@pytest.mark.parametrize("config", [TINY, WHOLE], ids=["half", "whole"])
@torch.no_grad()
def test_is_the_network_of_diffusers(config: DCAEConfig) -> None:
    """Whose grouped convolutions are missing: here they are the identity."""
    peer = import_library("diffusers.models.autoencoders.autoencoder_dc").AutoencoderDC(
        latent_channels=8,
        attention_head_dim=config.head_dim,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=config.widths,
        decoder_block_out_channels=config.widths,
        encoder_layers_per_block=config.encoder_depths,
        decoder_layers_per_block=config.decoder_depths,
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        decoder_norm_types=("batch_norm", "batch_norm", "rms_norm"),
        decoder_act_fns=("relu", "relu", "silu"),
    )
    for ours, theirs in ((DCAEEncoder(config, 8), peer.encoder), (DCAEDecoder(config, 8), peer.decoder)):
        around = ours.to_code if isinstance(ours, DCAEEncoder) else ours.from_code
        disturb(theirs)
        _copy_in_order(theirs, ours, skip=around)
        nn.init.dirac_(around.weight, groups=config.conv_groups)
        nn.init.zeros_(around.bias)
        x = torch.randn(2, 3, 48, 32) if isinstance(ours, DCAEEncoder) else torch.randn(2, 8, 12, 8)
        for mode in (True, False):  # batch statistics, then the running ones
            exact = theirs.train(mode).double()(x.double())
            assert (ours.train(mode).double()(x.double()) - exact).norm() < 1e-6 * exact.norm()


def _copy_in_order(theirs: nn.Module, ours: nn.Module, skip: nn.Module) -> None:
    """Weights in the order of the computation; our three projections of an attention are one convolution."""
    ordered = []
    for name, weight in _in_order(theirs):
        weight = weight.detach().clone()
        if ".to_k." in name or ".to_v." in name:
            ordered[-1] = torch.cat([ordered[-1], weight])
        else:
            ordered.append(weight)
    skipped = {id(weight) for weight in skip.parameters()}
    own = [weight for _, weight in _in_order(ours) if id(weight) not in skipped]
    assert len(own) == len(ordered)
    for mine, weight in zip(own, ordered, strict=True):
        mine.copy_(weight.reshape(mine.shape))


def _in_order(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """diffusers keeps the stages of its decoder with the last to run first."""
    named = list(module.named_parameters())
    stages = sorted({name.split(".")[1] for name, _ in named if name.startswith("up_blocks.")}, reverse=True)
    if not stages:
        first, last = "conv_in.", "conv_out."
        named.sort(key=lambda item: 0 if item[0].startswith(first) else 2 if item[0].startswith(last) else 1)
        return named
    order = ["conv_in.", *(f"up_blocks.{stage}." for stage in stages), "norm_out.", "conv_out."]
    return sorted(named, key=lambda item: next(i for i, prefix in enumerate(order) if item[0].startswith(prefix)))


def test_linear_attention_is_the_normalised_sum_it_stands_for() -> None:
    attention = LinearAttention(16, 8).double()
    disturb(attention)
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    q, k, v = attention.qkv(x).flatten(2).unflatten(1, (2, 3, 8)).mT.unbind(2)  # [B, heads, N, E]
    similar = q.relu() @ k.relu().mT  # [B, heads, N, N]
    h = similar / (similar.sum(-1, keepdim=True) + 1e-15) @ v  # [B, heads, N, E]
    expected = x + attention.norm(attention.output(h.mT.reshape(x.shape)))
    torch.testing.assert_close(attention(x), expected)


def test_linear_attention_sums_in_float32_under_autocast() -> None:
    """With one query a thousand times the others, bf16 sums would lose all the rest."""
    q, k, v = torch.rand(3, 1, 1, 8, 4096)
    exact = dcae._linear_attention(q.double(), k.double(), v.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine = dcae._linear_attention(q, k, v)
    assert mine.dtype == torch.float32
    assert (mine - exact).norm() < 1e-5 * exact.norm()


def test_a_query_that_meets_no_key_gives_zero_and_a_finite_gradient() -> None:
    q = torch.full((1, 1, 8, 4), -1.0, requires_grad=True)
    k, v = torch.rand(2, 1, 1, 8, 4)
    output = dcae._linear_attention(q, k, v)
    output.sum().backward()
    assert torch.equal(output, torch.zeros_like(output))
    assert torch.equal(q.grad, torch.zeros_like(q))


def test_groups_do_not_mix_around_the_quantizer() -> None:
    encoder, decoder = DCAEEncoder(TINY, 8), DCAEDecoder(TINY, 8)
    for layer in (encoder.to_code, decoder.from_code):
        z = torch.zeros(1, 8, 2, 2, requires_grad=True)
        layer(z)[:, 2:4].sum().backward()  # the second of four groups of two channels
        assert z.grad.abs().amax(dim=(0, 2, 3)).nonzero().flatten().tolist() == [2, 3]


@pytest.mark.parametrize("config", [TINY, WHOLE], ids=["half", "whole"])
def test_layouts_and_precisions(config: DCAEConfig) -> None:
    encoder, decoder = DCAEEncoder(config, 8), DCAEDecoder(config, 8)
    for module, x in ((encoder, torch.randn(2, 3, 16, 16)), (decoder, torch.randn(2, 8, 4, 4))):
        assert_layout_does_not_matter(module.eval(), x)
        assert_bf16_is_near(module.train(), x)
        assert_checkpointing_changes_nothing(module, x)  # running statistics are buffers: counted once


def test_configs_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="encoder_depths: expected 5 numbers of blocks, only the first 0, got"):
        DCAEConfig(encoder_depths=(0, 4))
    with pytest.raises(ValueError, match="decoder_depths: expected 5 numbers of blocks"):
        DCAEConfig(decoder_depths=(0, 4, 0, 1, 1))
    with pytest.raises(ValueError, match=r"widths: expected 24 to divide 4 \* 16"):
        DCAEConfig(widths=(16, 24), encoder_depths=(1, 1), decoder_depths=(1, 1))
    with pytest.raises(ValueError, match="head_dim: expected a divisor of 512 channels, got 48"):
        DCAEConfig(head_dim=48)
    with pytest.raises(ValueError, match="width: expected a divisor of 32 channels, got 12"):
        DCAEEncoder(TINY, 12)
    with pytest.raises(ValueError, match="conv_groups: expected a divisor of the width 2, got 4"):
        DCAEDecoder(TINY, 2)
