"""Adversarial losses against closed forms, the gradient penalty against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from models.losses.adversarial import (
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    start_factor,
)


def test_hinge() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert discriminator_loss(real, fake).item() == 0.5 * (0.25 + 0.75)
    assert generator_loss(fake).item() == 0.75


def test_logistic_and_its_half() -> None:
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([[0.5], [-3.0]])
    wanted = (math.log1p(math.exp(-2)) + math.log1p(math.e)) / 2
    wanted += (math.log1p(math.exp(0.5)) + math.log1p(math.exp(-3))) / 2
    assert discriminator_loss(real, fake, "logistic").item() == pytest.approx(wanted, rel=1e-6)
    assert discriminator_loss(real, fake, "vanilla").item() == pytest.approx(wanted / 2, rel=1e-6)
    assert generator_loss(fake, "vanilla").item() == 1.25
    wanted = (math.log1p(math.exp(-0.5)) + math.log1p(math.exp(3))) / 2
    assert generator_loss(fake, "logistic").item() == pytest.approx(wanted, rel=1e-6)


def test_logistic_does_not_saturate() -> None:
    """Where the discriminator is sure, the tokenizer still learns; the loss of the real game would let go."""
    fake = torch.tensor([-20.0], requires_grad=True)
    generator_loss(fake, "logistic").backward()
    assert fake.grad.item() == pytest.approx(-1.0, abs=1e-6)


def test_gradient_penalty_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    judge = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 4, 2)).double()
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    step, slopes = 1e-5, torch.zeros(2, 48, dtype=torch.float64)
    with torch.no_grad():
        for place in range(48):
            shift = torch.zeros(48, dtype=torch.float64)
            shift[place] = step
            shift = shift.reshape(3, 4, 4)
            slopes[:, place] = (judge(images + shift) - judge(images - shift)).sum(1) / (2 * step)
    penalty = gradient_penalty(judge, images)
    assert penalty.item() == pytest.approx(0.5 * slopes.square().sum(1).mean().item(), rel=1e-6)
    # and it has a gradient of its own
    penalty.backward()
    weight = judge[0].weight
    assert weight.grad is not None
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[1, 2, 0, 1] += sign * step
        values.append(gradient_penalty(judge, images).item())
        with torch.no_grad():
            weight[1, 2, 0, 1] -= sign * step
    assert weight.grad[1, 2, 0, 1].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


def test_gradient_penalty_of_a_linear_score_is_half_its_squared_weight() -> None:
    score = nn.Sequential(nn.Flatten(), nn.Linear(12, 1, bias=False))
    weight = score[1].weight
    assert torch.isclose(gradient_penalty(score, torch.randn(5, 3, 2, 2)), 0.5 * weight.square().sum())
    # and in bf16 training just the same
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isclose(gradient_penalty(score, torch.randn(5, 3, 2, 2)), 0.5 * weight.square().sum())


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    wanted, given = (3 * weight).sum(), weight[0] * 0.5  # gradients (3, 3) and (0.5, 0)
    assert adaptive_weight(wanted, given, weight).item() == pytest.approx(18**0.5 / (0.5 + 1e-4))
    assert adaptive_weight(1e6 * wanted, 0 * given, weight).item() == 1e4


def test_start_factor_waits_and_then_climbs() -> None:
    assert [start_factor(step, 5) for step in (1, 4, 5, 6)] == [0, 0, 1, 1]
    assert [start_factor(step, 5, warmup=3) for step in (4, 5, 6, 7, 8, 9)] == [0, 0.25, 0.5, 0.75, 1, 1]
