"""Differences of pixels against their formulas."""

from __future__ import annotations

import pytest
import torch

from models.losses.pixel import charbonnier, l1, l2, psnr


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    images, wrong = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return wrong, images


def test_they_are_their_formulas(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    wrong, images = pair
    error = wrong.double() - images.double()
    assert l1(wrong, images).item() == pytest.approx(error.abs().mean().item(), rel=1e-6)
    assert l2(wrong, images).item() == pytest.approx(error.square().mean().item(), rel=1e-6)
    for eps in (1e-6, 0.1):
        wanted = (error.square() + eps).sqrt().mean().item()
        assert charbonnier(wrong, images, eps).item() == pytest.approx(wanted, rel=1e-6)
    assert charbonnier(wrong, images) == charbonnier(wrong, images, 1e-6)


def test_psnr_is_that_of_clipped_images(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    wrong, images = pair
    error = (images.double() - wrong.double()) / 2  # of images in [0, 1]
    assert psnr(wrong, images).item() == pytest.approx(-10 * error.square().mean().log10().item(), rel=1e-6)
    assert torch.equal(psnr(wrong * 4, images), psnr((wrong * 4).clamp(-1, 1), images))


def test_charbonnier_is_smooth_at_zero() -> None:
    error = torch.zeros(1, 3, 2, 2, requires_grad=True)
    charbonnier(error, torch.zeros(1, 3, 2, 2)).backward()
    assert torch.equal(error.grad, torch.zeros_like(error))
