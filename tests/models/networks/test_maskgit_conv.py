"""SeQ-GAN's network. Oracles: the paper's counts, attention written out position by position."""

from __future__ import annotations

import pytest
import torch
from network_checks import (
    assert_bf16_is_near,
    assert_checkpointing_changes_nothing,
    assert_layout_does_not_matter,
    assert_learns,
    disturb,
    millions,
)

from models.networks.maskgit_conv import (
    MaskGITConvConfig,
    MaskGITConvDecoder,
    MaskGITConvEncoder,
    WindowAttention,
    maskgit_conv_pocket,
)

TINY = MaskGITConvConfig(base_channels=32, multipliers=(1, 2), res_blocks=1, attention_pairs=1, windows=(4, 2))
CODES = 1024 * 256 / 1e6


@pytest.mark.parametrize(
    ("options", "total"),
    [({}, 54.4), ({"attention_pairs": 1}, 57.9), ({"attention_pairs": 2}, 61.3), ({"extra_blocks": 2}, 69.8)],
)
def test_numbers_of_weights_are_the_published_ones(options: dict[str, int], total: float) -> None:
    """The paper prints 54.5, 57.9, 61.4 and 70.0; ours differ by how a count is rounded."""
    config = MaskGITConvConfig(**options)
    with torch.device("meta"):
        encoder, decoder = MaskGITConvEncoder(config, 256), MaskGITConvDecoder(config, 256)
    assert millions(encoder) == pytest.approx(23.61, abs=0.005)
    assert round(millions(encoder, decoder) + CODES, 1) == total


def test_phase_1_decoder_has_its_published_size_and_the_pocket_network_is_small() -> None:
    with torch.device("meta"):
        assert millions(MaskGITConvDecoder(MaskGITConvConfig(), 256)) == pytest.approx(30.56, abs=0.005)
        config = maskgit_conv_pocket()
        pocket = millions(MaskGITConvEncoder(config, 64), MaskGITConvDecoder(config, 64))
    assert 1 < pocket < 2


def test_shapes_and_gradients() -> None:
    encoder, decoder = MaskGITConvEncoder(TINY, 8), MaskGITConvDecoder(TINY, 8)
    disturb(decoder)
    images = torch.randn(2, 3, 8, 16)
    latents = encoder(images)
    assert latents.shape == (2, 8, 4, 8)
    assert decoder(latents).shape == images.shape
    assert decoder.output.weight.shape == (3, 32, 3, 3)
    assert_learns(lambda: decoder(encoder(images)), encoder, decoder)


@pytest.mark.parametrize("dilated", [False, True])
def test_window_attention_is_attention_among_the_positions_it_names(dilated: bool) -> None:
    attention = WindowAttention(64, 3, dilated=dilated).double()
    disturb(attention)
    x = torch.randn(2, 64, 6, 9, dtype=torch.float64)
    qkv = attention.qkv(attention.norm(x)).unflatten(1, (3, 2, 32))  # [B, 3, heads, 32, h, w]
    q, k, v = (qkv[:, i].flatten(3).mT for i in range(3))  # [B, heads, N, 32]
    row, column = (index.flatten() for index in torch.meshgrid(torch.arange(6), torch.arange(9), indexing="ij"))
    key = (row % 3 * 3 + column % 3) if dilated else (row // 3 * 3 + column // 3)
    similar = (q @ k.mT / 32**0.5).masked_fill(key[:, None] != key[None, :], float("-inf"))
    expected = x + attention.output((similar.softmax(-1) @ v).mT.reshape(x.shape))
    torch.testing.assert_close(attention(x), expected)


def test_two_phases() -> None:
    """Phase 2 begins with the bits of phase 1, and its attention then learns."""
    config = MaskGITConvConfig(base_channels=32, multipliers=(1, 2), res_blocks=1, windows=(4, 2))
    first, second = MaskGITConvDecoder(config, 8), MaskGITConvDecoder(TINY, 8)
    z = torch.randn(1, 8, 4, 4)
    assert not torch.equal(first(z), second(z))
    missing, unexpected = second.load_state_dict(first.state_dict(), strict=False)
    assert not unexpected
    assert all(MaskGITConvDecoder.grown in name for name in missing)
    assert torch.equal(first(z), second(z))
    second(z).square().mean().backward()
    gates = [layer for name, layer in second.named_parameters() if ".attention." in name and "output" in name]
    assert len(gates) == 2 * 2 * 2
    assert all(gate.grad is not None and gate.grad.abs().max() > 0 for gate in gates)


def test_layouts_and_precisions() -> None:
    encoder, decoder = MaskGITConvEncoder(TINY, 8), MaskGITConvDecoder(TINY, 8)
    disturb(decoder)
    for module, x in ((encoder, torch.randn(2, 3, 16, 16)), (decoder, torch.randn(2, 8, 8, 8))):
        assert_layout_does_not_matter(module, x)
        assert_bf16_is_near(module, x)
        assert_checkpointing_changes_nothing(module.train(), x)


def test_configs_and_maps_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="base_channels: expected a multiple of 32, got 48"):
        MaskGITConvConfig(base_channels=48)
    with pytest.raises(ValueError, match="res_blocks: expected at least 1, got 0"):
        MaskGITConvConfig(res_blocks=0)
    with pytest.raises(ValueError, match="windows: expected one window for each of the 5 levels, got"):
        MaskGITConvConfig(attention_pairs=1, windows=(4, 4))
    with pytest.raises(ValueError, match="x: expected a map whose sides are multiples of 2, got 3x4"):
        MaskGITConvDecoder(TINY, 8)(torch.zeros(1, 8, 3, 4))
