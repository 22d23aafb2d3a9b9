"""Losses of pixels and of discriminators. Oracle: their formulas written out, gradients by finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from models.losses.adversarial import adaptive_weight, discriminator_loss, generator_loss, gradient_penalty
from models.losses.pixel import charbonnier, psnr


def test_psnr_and_charbonnier_are_their_formulas() -> None:
    images, wrong = torch.rand(2, 2, 3, 8, 8) * 2 - 1
    error = images.double() - wrong.double()
    expected = -10 * (error / 2).square().mean().log10()  # of images in [0, 1]
    assert psnr(wrong, images).item() == pytest.approx(expected.item(), rel=1e-6)
    assert charbonnier(wrong, images).item() == pytest.approx((error.square() + 1e-6).sqrt().mean().item(), rel=1e-6)
    assert charbonnier(images, images).item() == pytest.approx(1e-3)


def test_hinge_and_logistic_losses_are_their_formulas() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert discriminator_loss(real, fake, "hinge").item() == 0.5 * (0.25 + 0.75)
    assert generator_loss(fake, "hinge").item() == 0.75
    soft = [math.log1p(math.exp(x)) for x in (-2.0, -0.5, -2.0, 0.5)]
    assert discriminator_loss(real, fake, "logistic").item() == pytest.approx((sum(soft[:2]) + sum(soft[2:])) / 2)
    assert generator_loss(fake, "logistic").item() == pytest.approx(
        (math.log1p(math.exp(2.0)) + math.log1p(math.exp(-0.5))) / 2
    )


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    wanted, given = (3 * weight).sum(), weight[0] * 0.5  # gradients (3, 3) and (0.5, 0)
    assert adaptive_weight(wanted, given, weight).item() == pytest.approx(18**0.5 / (0.5 + 1e-4))
    assert adaptive_weight(1e6 * wanted, 0 * given, weight).item() == 1e4


def test_the_gradient_penalty_is_half_the_squared_slope_and_has_its_gradient() -> None:
    judge = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Conv2d(4, 1, 3)).double()
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    slopes = []
    for index in range(2):
        image = images[index : index + 1].clone().requires_grad_()
        judge(image).sum().backward()
        assert image.grad is not None
        slopes.append(image.grad.square().sum())
    judge.zero_grad()
    penalty = gradient_penalty(judge, images)
    assert penalty.item() == pytest.approx(0.5 * sum(slopes).item() / 2)
    penalty.backward()
    weight, step = judge[0].weight, 1e-5
    assert weight.grad is not None
    given = weight.grad[1, 2, 0, 1].item()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[1, 2, 0, 1] += sign * step
        values.append(gradient_penalty(judge, images).item())
        with torch.no_grad():
            weight[1, 2, 0, 1] -= sign * step
    assert given == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)
