"""Scores of pixels against scikit-image, torchmetrics, and formulas written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import skimage.color
import skimage.metrics
import torch
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from models.metrics.pixel import Psnr, ms_ssim, ssim, to_unit

# float64 on both sides: what is left is the order of summation over at most some ten thousand pixels
ROUNDING = 1e-10


def picture(side: int, error: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:  # [1, 3, side, side + 8]
    """A smooth picture and a noisy one, in [0, 1]."""
    random = np.random.default_rng(seed)
    original = random.random((3, side, side + 8)).cumsum(axis=2)
    original /= original.max()
    noisy = np.clip(original + error * random.standard_normal(original.shape), 0, 1)
    return torch.from_numpy(original)[None], torch.from_numpy(noisy)[None]


@pytest.fixture
def pairs() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pictures of different sizes, with errors of very different size."""
    return [picture(32, 0.02, 0), picture(48, 0.2, 1)]


@pytest.fixture
def scores(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> Psnr:
    psnr = Psnr()
    for number, pair in enumerate(pairs):
        psnr.update(torch.tensor([number]), *pair)
    return psnr


def test_psnr_is_the_mean_of_the_images(pairs: list[tuple[torch.Tensor, torch.Tensor]], scores: Psnr) -> None:
    wanted = [skimage.metrics.peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=1.0) for a, b in pairs]
    assert scores.compute()["psnr"] == pytest.approx(np.mean(wanted), rel=ROUNDING)
    assert scores.of_images() == pytest.approx(wanted, rel=ROUNDING)


def test_psnr_of_the_mean_error(pairs: list[tuple[torch.Tensor, torch.Tensor]], scores: Psnr) -> None:
    errors = [np.mean((a.numpy() - b.numpy()) ** 2) for a, b in pairs]
    found = scores.compute()
    assert found["psnr_dataset"] == pytest.approx(-10 * np.log10(np.mean(errors)), rel=ROUNDING)
    assert found["psnr_dataset"] < found["psnr"] - 1  # the conventions differ on such a pair


def test_psnr_of_luma(pairs: list[tuple[torch.Tensor, torch.Tensor]], scores: Psnr) -> None:
    wanted = []
    for pair in pairs:
        a, b = (skimage.color.rgb2ycbcr(image[0].numpy(), channel_axis=0)[0] for image in pair)
        wanted.append(skimage.metrics.peak_signal_noise_ratio(a, b, data_range=255.0))
    assert scores.compute()["psnr_luma"] == pytest.approx(np.mean(wanted), rel=ROUNDING)


def test_psnr_of_equal_images_is_infinite_and_of_none_is_not_a_number() -> None:
    psnr = Psnr()
    assert all(np.isnan(value) for value in psnr.compute().values())
    image = torch.rand(1, 3, 4, 4).double()
    psnr.update(torch.tensor([0]), image, image)
    assert set(psnr.compute().values()) == {float("inf")}


def test_ssim(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for original, noisy in pairs:
        wanted = skimage.metrics.structural_similarity(
            original[0].numpy(),
            noisy[0].numpy(),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert ssim(original, noisy).item() == pytest.approx(wanted, rel=ROUNDING)


def maps(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:  # [H, W]
    """Mean SSIM and mean contrast term of one channel, windows as sums over 11 x 11 pixels."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2

    def blur(x: np.ndarray) -> np.ndarray:
        return scipy.signal.convolve2d(x, window, mode="valid")

    contrast = (2 * (blur(a * b) - blur(a) * blur(b)) + 0.0009) / (
        blur(a * a) - blur(a) ** 2 + blur(b * b) - blur(b) ** 2 + 0.0009
    )
    luminance = (2 * blur(a) * blur(b) + 0.0001) / (blur(a) ** 2 + blur(b) ** 2 + 0.0001)
    return (luminance * contrast).mean(), contrast.mean()


def test_ms_ssim() -> None:
    pairs = [picture(176, 0.05, 2), picture(176, 0.4, 3)]
    found = ms_ssim(*(torch.cat(side) for side in zip(*pairs, strict=True)))
    wanted = []
    for pair in pairs:
        a, b = (image[0].numpy() for image in pair)
        product = 1.0
        for scale, power in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            channels = [maps(x, y) for x, y in zip(a, b, strict=True)]
            product *= np.mean([ssim if scale == 4 else contrast for ssim, contrast in channels]) ** power
            height, width = (side // 2 for side in a.shape[1:])
            a, b = (x[:, : 2 * height, : 2 * width].reshape(3, height, 2, width, 2).mean((2, 4)) for x in (a, b))
        wanted.append(product)
    assert wanted[0] > wanted[1] + 0.1
    np.testing.assert_allclose(found, wanted, rtol=ROUNDING)
    # torchmetrics lets windows at the last scale see a mirrored border; that is all that differs
    theirs = multiscale_structural_similarity_index_measure(
        pairs[0][1], pairs[0][0], data_range=1.0, normalize="relu"
    )
    assert found[0].item() == pytest.approx(theirs.item(), rel=1e-3)


def test_images_without_a_whole_window_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^ssim: expected images of at least 11 pixels, got \[10, 32\]$"):
        ssim(torch.zeros(1, 3, 10, 32), torch.zeros(1, 3, 10, 32))
    with pytest.raises(ValueError, match=r"^ms_ssim: expected images of at least 176 pixels, got \[175, 200\]$"):
        ms_ssim(torch.zeros(1, 3, 175, 200), torch.zeros(1, 3, 175, 200))
    assert ms_ssim(torch.zeros(1, 3, 176, 176), torch.zeros(1, 3, 176, 176)).item() == 1


def test_pixels_are_clipped_and_not_rounded() -> None:
    images = torch.tensor([-1.5, -1.0, 0.1, 1.0, 2.0])
    found = to_unit(images)
    assert found.dtype == torch.float64
    assert found.tolist() == [0, 0, (images[2].double().item() + 1) / 2, 1, 1]
