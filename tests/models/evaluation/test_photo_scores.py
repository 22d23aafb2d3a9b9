"""Whole photographs: padding, cropping, and the pictures. Oracles: numpy, scikit-learn, the tokenizer itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from models import recipes
from models.data.photos import Photo
from models.evaluation.photos import principal_plane, reconstruct, tokenize
from models.metrics.codes import CodeCounts
from models.tokenizers import Tokenizer, build_tokenizer


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
    found = reconstruct(tokenizer, small, tokens)
    assert found.shape == (1, 3, 21, 34)
    assert torch.equal(found, reconstruct(tokenizer, large, tokens)[:, :, :21, :34])


def test_latents_are_what_the_codebook_is_looked_up_with(tokenizer: Tokenizer) -> None:
    image = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    tokens = tokenize(tokenizer, Photo("noise", image, "val"))
    codebook = tokenizer.quantizer.codebook.detach().double()  # [G, K, D]
    indices = tokens.indices.reshape(-1, len(codebook))
    for group, codes in enumerate(codebook):
        distance = torch.cdist(tokens.latents[:, group].double(), codes)
        assert torch.equal(distance.argmin(1), indices[:, group])
        counts = CodeCounts(*codebook.shape[:2])
        counts.update(tokens.indices)
        assert torch.equal(counts.counts[group], torch.bincount(indices[:, group], minlength=codebook.shape[1]))
