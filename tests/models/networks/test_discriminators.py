"""Discriminators. Oracles: published receptive fields, filters and statistics written out."""

from __future__ import annotations

import math

import pytest
import torch
from network_checks import assert_bf16_is_near, assert_layout_does_not_matter, assert_learns, millions
from torch import nn
from torch.nn import functional as F

from models.networks.discriminators import (
    DiscriminatorConfig,
    PatchGAN,
    PatchGANConfig,
    StyleGAN2Config,
    StyleGAN2Discriminator,
    blur_and_halve,
    build_discriminator,
    minibatch_stddev,
    stylegan2_pocket,
)

TINY = {
    "patchgan": PatchGANConfig(layers=2, channels=8),
    "stylegan2": StyleGAN2Config(image_size=16, channels_times_size=128, max_channels=16),
    "stylegan2-all": StyleGAN2Config(
        image_size=16, channels_times_size=128, max_channels=16, minibatch_stddev=2, equalized_lr=True
    ),
}


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (PatchGANConfig(), 2.77),
        (PatchGANConfig(layers=2), 0.66),
        (StyleGAN2Config(), 24.0),
        (StyleGAN2Config(minibatch_stddev=4, equalized_lr=True), 24.0),
        (stylegan2_pocket(), 0.7),
    ],
)
def test_numbers_of_weights(config: DiscriminatorConfig, size: float) -> None:
    with torch.device("meta"):
        assert millions(build_discriminator(config)) == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize(("layers", "field"), [(2, 34), (3, 70)])
def test_a_patch_score_sees_its_receptive_field(layers: int, field: int) -> None:
    """34 and 70 pixels are the published receptive fields of PatchGAN with two and three strided layers."""
    discriminator = PatchGAN(PatchGANConfig(layers=layers, channels=8)).eval()
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    scores = discriminator(images)
    middle = scores.shape[-1] // 2
    scores[0, 0, middle, middle].backward()
    assert images.grad is not None
    seen = images.grad[0].abs().sum(dim=0) > 0
    assert (int(seen.any(dim=0).sum()), int(seen.any(dim=1).sum())) == (field, field)


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_the_smallest_image_leaves_one_score(layers: int) -> None:
    config = PatchGANConfig(layers=layers, channels=4)
    side = config.smallest_image
    assert PatchGAN(config)(torch.randn(2, 3, side, side)).shape == (2, 1, 1, 1)
    with pytest.raises(
        ValueError, match=rf"layers: expected images of at least {side} pixels for {layers} layers, got"
    ):
        PatchGAN(config)(torch.randn(2, 3, side - 1, side))


def test_patchgan_starts_as_published() -> None:
    discriminator = PatchGAN(PatchGANConfig())
    convs = [module for module in discriminator.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in discriminator.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [conv.stride[0] for conv in convs] == [2, 2, 2, 1, 1]
    assert [conv.out_channels for conv in convs] == [64, 128, 256, 512, 1]
    assert [conv.bias is not None for conv in convs] == [True, False, False, False, True]
    weights = torch.cat([conv.weight.flatten() for conv in convs])
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)
    scales = torch.cat([norm.weight for norm in norms])
    assert (scales - 1).std().item() == pytest.approx(0.02, rel=0.2)
    assert all(not norm.bias.any() for norm in norms)


@pytest.mark.parametrize("name", TINY)
def test_shapes_gradients_layouts_and_precisions(name: str) -> None:
    discriminator = build_discriminator(TINY[name])
    images = torch.randn(4, 3, 16, 16)
    expected = (4, 1, 2, 2) if name == "patchgan" else (4, 1)
    assert discriminator(images).shape == expected
    assert_bf16_is_near(discriminator, images)
    discriminator.zero_grad()
    assert_learns(lambda: discriminator(images), discriminator)
    assert_layout_does_not_matter(discriminator.eval(), images)


@pytest.mark.parametrize("name", TINY)
def test_the_gradient_at_the_images_has_a_gradient(name: str) -> None:
    """What R1 needs: double backward through every layer. Oracle: a finite difference along one weight."""
    discriminator = build_discriminator(TINY[name]).double()
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64, requires_grad=True)

    def penalty() -> torch.Tensor:
        (slope,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
        return slope.square().sum()

    weight = next(discriminator.parameters())
    (gradient,) = torch.autograd.grad(penalty(), weight)
    direction, step = torch.randn_like(weight), 1e-6
    weight.data += step * direction
    above = penalty()
    weight.data -= 2 * step * direction
    slope = (above - penalty()) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-4)


def test_blur_is_1_2_1_along_both_axes() -> None:
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    rows = (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4
    both = (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4
    torch.testing.assert_close(blur_and_halve(x), both[:, :, ::2, ::2])


def test_minibatch_stddev_is_the_deviation_over_every_mth_image() -> None:
    x = torch.randn(6, 4, 2, 2)
    found = minibatch_stddev(x, 3)
    assert found.shape == (6, 1, 2, 2)
    for group in range(2):
        members = x[group::2]  # three images
        expected = (members.double().var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
        torch.testing.assert_close(found[group::2].double(), expected.expand(3, 1, 2, 2), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="images: expected a multiple of minibatch_stddev=4, got 6"):
        minibatch_stddev(x, 4)


def test_equalized_weights_are_the_plain_ones_over_their_scale() -> None:
    plain, equalized = (
        StyleGAN2Discriminator(StyleGAN2Config(image_size=16, channels_times_size=128, equalized_lr=flag))
        for flag in (False, True)
    )
    source = dict(plain.named_modules())
    for name, module in equalized.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(1, rel=0.5)
            inputs, gain = module.weight[0].numel(), 1 if name.endswith(("shortcut", "output")) else math.sqrt(2)
            module.weight.data = source[name].weight.data / (gain / math.sqrt(inputs))
            if module.bias is not None:
                module.bias.data = source[name].bias.data
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(equalized(images), plain(images), rtol=1e-4, atol=1e-5)


def test_configs_and_images_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="layers: expected at least 1, got 0"):
        PatchGANConfig(layers=0)
    with pytest.raises(ValueError, match="layers: expected images of at least 48 pixels for 4 layers, got 32 pixels"):
        PatchGANConfig(layers=4).check_image_size(32)
    for size in (4, 96):
        with pytest.raises(ValueError, match=f"image_size: expected a power of two from 8 on, got {size}"):
            StyleGAN2Config(image_size=size)
    with pytest.raises(ValueError, match="channels_times_size: expected at least 64, got 32"):
        StyleGAN2Config(image_size=64, channels_times_size=32)
    with pytest.raises(ValueError, match="image_size: expected that of the images, 32, got 16"):
        build_discriminator(TINY["stylegan2"])(torch.zeros(1, 3, 16, 32))
