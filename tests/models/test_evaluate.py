"""Scores against scikit-image, scipy, scikit-learn, and formulas written out in numpy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.stats
import skimage.color
import skimage.metrics
import torch
from sklearn.decomposition import PCA

from models import recipes
from models.data.photos import Photo
from models.evaluate import (
    Pair,
    code_use,
    count_codes,
    principal_plane,
    psnr_dataset,
    psnr_luma,
    psnr_rgb,
    reconstruct,
    ssim_rgb,
    tokenize,
)
from models.tokenizers import Tokenizer, build_tokenizer

# float64 on both sides: what is left is the order of summation over at most a few thousand pixels
ROUNDING = 1e-10


@pytest.fixture
def pairs() -> list[Pair]:
    """Smooth pictures of different sizes, with errors of very different size."""
    random = np.random.default_rng(0)
    made = []
    for side, error in ((32, 0.02), (48, 0.2)):
        original = random.random((3, side, side + 8)).cumsum(axis=2)
        original /= original.max()
        noisy = np.clip(original + error * random.standard_normal(original.shape), 0, 1)
        made.append(Pair(torch.from_numpy(original), torch.from_numpy(noisy)))
    return made


def test_psnr_is_the_mean_of_the_images(pairs: list[Pair]) -> None:
    wanted = [skimage.metrics.peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=1.0) for a, b in pairs]
    assert psnr_rgb(pairs) == pytest.approx(np.mean(wanted), rel=ROUNDING)


def test_psnr_of_the_mean_error(pairs: list[Pair]) -> None:
    errors = [np.mean((a.numpy() - b.numpy()) ** 2) for a, b in pairs]
    assert psnr_dataset(pairs) == pytest.approx(-10 * np.log10(np.mean(errors)), rel=ROUNDING)
    assert psnr_dataset(pairs) < psnr_rgb(pairs) - 1  # the conventions differ on such a pair


def test_psnr_of_luma(pairs: list[Pair]) -> None:
    wanted = []
    for pair in pairs:
        a, b = (skimage.color.rgb2ycbcr(image.numpy(), channel_axis=0)[0] for image in pair)
        wanted.append(skimage.metrics.peak_signal_noise_ratio(a, b, data_range=255.0))
    assert psnr_luma(pairs) == pytest.approx(np.mean(wanted), rel=ROUNDING)


def test_psnr_of_equal_images_is_infinite(pairs: list[Pair]) -> None:
    assert psnr_rgb([Pair(pairs[0].original, pairs[0].original)]) == float("inf")


def test_ssim(pairs: list[Pair]) -> None:
    wanted = [
        skimage.metrics.structural_similarity(
            original.numpy(),
            reconstruction.numpy(),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for original, reconstruction in pairs
    ]
    assert ssim_rgb(pairs) == pytest.approx(np.mean(wanted), rel=ROUNDING)


def test_code_use_is_the_mean_over_groups() -> None:
    counts = torch.tensor([[4, 4, 0, 0], [1, 2, 3, 4]])
    used = code_use(counts)
    assert used.utilization == (0.5 + 1.0) / 2
    wanted = np.mean([np.exp(scipy.stats.entropy(row)) for row in counts.numpy()])
    assert used.perplexity == pytest.approx(wanted, rel=ROUNDING)


def test_principal_plane_is_that_of_pca() -> None:
    random = np.random.default_rng(1)
    vectors = random.standard_normal((200, 5)) * [5, 1, 0.1, 3, 0.1] + 7
    codes = random.standard_normal((16, 5)) + 7
    ours = principal_plane(torch.from_numpy(codes), torch.from_numpy(vectors))
    pca = PCA(2).fit(vectors)
    for plane, points in zip(ours, (codes, vectors), strict=True):
        # signs of directions are free; results are rounded to float32
        np.testing.assert_allclose(np.abs(plane), np.abs(pca.transform(points)), rtol=1e-5, atol=1e-5)


@pytest.fixture(params=["patch_fc", "patch_groups"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    torch.manual_seed(0)
    config = recipes.with_num_codes(recipes.TOKENIZERS[request.param](), 64)
    network = dataclasses.replace(config.network, hidden=32, blocks=1)
    return build_tokenizer(network, config.quantizer).eval()


def test_photos_of_any_size_are_padded_and_cropped_back(tokenizer: Tokenizer) -> None:
    image = np.random.default_rng(2).integers(0, 256, (21, 34, 3), dtype=np.uint8)
    padded = np.pad(image, ((0, 3), (0, 6), (0, 0)), mode="edge")
    small, large = Photo("small", image, "val"), Photo("large", padded, "val")
    tokens = tokenize(tokenizer, small)
    assert torch.equal(tokens.indices, tokenize(tokenizer, large).indices)
    assert len(tokens.latents) == 3 * 5
    pair = reconstruct(tokenizer, small, tokens)
    assert torch.equal(pair.reconstruction, reconstruct(tokenizer, large, tokens).reconstruction[:, :21, :34])
    np.testing.assert_allclose(pair.original.numpy(), image.transpose(2, 0, 1) / 255, atol=1e-7)


def test_latents_are_what_the_codebook_is_looked_up_with(tokenizer: Tokenizer) -> None:
    image = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    tokens = tokenize(tokenizer, Photo("noise", image, "val"))
    codebook = tokenizer.quantizer.codebook.detach().double()  # [G, K, D]
    indices = tokens.indices.reshape(-1, len(codebook))
    for group, codes in enumerate(codebook):
        distance = torch.cdist(tokens.latents[:, group].double(), codes)
        assert torch.equal(distance.argmin(1), indices[:, group])
        counts = count_codes([tokens, tokens], codebook.shape)[group]
        assert torch.equal(counts, 2 * torch.bincount(indices[:, group], minlength=codebook.shape[1]))
