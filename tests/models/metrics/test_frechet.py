"""Distances of sets against scipy, scikit-learn and cases with a closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.neighbors import NearestNeighbors

from models.errors import UserError
from models.metrics.frechet import FrechetDistance, InceptionScore, PrecisionRecall, Similarity, frechet_distance


def embeddings(count: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator)
    return torch.randn(count, dim, generator=generator) @ mixing + torch.randn(dim, generator=generator)


def of(real: torch.Tensor, fake: torch.Tensor, **options: int) -> float:
    distance = FrechetDistance(real.shape[1], **options)
    for part in real.split(7):
        distance.update(part, None)
    for part in fake.split(5):
        distance.update(None, part)
    return distance.compute()["distance"]


@pytest.mark.parametrize("correction", [0, 1])
def test_frechet_distance_is_that_of_matrix_roots(correction: int) -> None:
    real, fake = embeddings(300, 6, 0), embeddings(200, 6, 1)
    moments = [(x.double().numpy().mean(0), np.cov(x.double().numpy().T, ddof=correction)) for x in (real, fake)]
    (mean_a, a), (mean_b, b) = moments
    wanted = ((mean_a - mean_b) ** 2).sum() + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert of(real, fake, correction=correction) == pytest.approx(wanted, rel=1e-9)


def test_commuting_covariances_have_a_closed_form() -> None:
    a, b = torch.tensor([4.0, 9.0, 0.0, 1.0]).double(), torch.tensor([1.0, 0.0, 0.0, 16.0]).double()
    mean = torch.tensor([0.0, 3.0, 0.0, 4.0]).double()
    wanted = 25 + (a.sqrt() - b.sqrt()).square().sum().item()
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double()).Q
    found = frechet_distance(
        torch.zeros(4).double(), rotation @ a.diag() @ rotation.T, rotation @ mean, rotation @ b.diag() @ rotation.T
    )
    assert found == pytest.approx(wanted, rel=1e-12)


def test_fewer_images_than_dimensions_are_no_trouble() -> None:
    """Covariances of rank 9 in 200 dimensions; roots of what is zero but for rounding would cost the last digits."""
    real = embeddings(10, 200, 0)
    scale = real.double().var(0).sum().item()
    assert abs(of(real, real)) < 1e-11 * scale
    assert of(real, real + 3) == pytest.approx(200 * 9, rel=1e-6)  # float32 shifts by 3 only nearly
    # half the size in every direction: tr(A) - 2 tr(A/2) + tr(A/4) = tr(A) / 4
    mean = real.double().mean(0)
    half = mean + (real.double() - mean) / 2
    assert of(real.double(), half) == pytest.approx(scale / 4, rel=1e-9)


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(UserError, match=r"^images: expected at least 2 for a covariance, got 1$"):
        of(torch.zeros(1, 3), torch.zeros(5, 3))


def test_similarity_is_the_mean_cosine() -> None:
    real, fake = torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    similarity = Similarity()
    similarity.update(torch.arange(2), real, fake)
    assert similarity.compute()["cosine"] == pytest.approx((math.sqrt(0.5) + 1) / 2)


def test_precision_and_recall_are_shares_of_points_in_balls() -> None:
    real, fake = embeddings(120, 4, 0), embeddings(90, 4, 0)[:, [1, 0, 2, 3]] + 1

    def covered(points: np.ndarray, centers: np.ndarray) -> float:
        radius = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(centers).kneighbors(centers)[0][:, 3]
        inside = [any(np.linalg.norm(p - c) <= r for c, r in zip(centers, radius, strict=True)) for p in points]
        return float(np.mean(inside))

    scores = PrecisionRecall()
    scores.update(torch.arange(70), real[:70], fake[:70])
    scores.update(torch.arange(70, 120), real[70:], None)
    other = PrecisionRecall()
    other.update(torch.arange(70, 90), None, fake[70:])
    scores.add(other.state())
    found = scores.compute()
    real_points, fakes = real.numpy().astype(float), fake.numpy().astype(float)
    assert found == {"precision": covered(fakes, real_points), "recall": covered(real_points, fakes)}
    assert 0.1 < found["recall"] < 0.9
    assert 0.1 < found["precision"] < 0.9


def test_precision_needs_neighbours() -> None:
    scores = PrecisionRecall()
    scores.update(torch.arange(3), torch.randn(3, 2), torch.randn(3, 2))
    with pytest.raises(UserError, match=r"^images: expected more than 3 of each set for 3 neighbours, got 3 and 3$"):
        scores.compute()


def test_inception_score_is_the_divergence_from_the_mean() -> None:
    logits = torch.randn(35, 6, generator=torch.Generator().manual_seed(0)) * 2
    score = InceptionScore(6, splits=4)
    for index in torch.arange(35).split(8):
        score.update(index, logits[index])
    wanted = []
    for split in range(4):
        p = logits[split::4].double().softmax(1)
        wanted.append((p * (p / p.mean(0)).log()).sum(1).mean().exp().item())
    found = score.compute()
    assert found["inception_score"] == pytest.approx(np.mean(wanted), rel=1e-12)
    assert found["inception_score_std"] == pytest.approx(np.std(wanted), rel=1e-9)


def test_inception_score_of_sure_and_even_classes_is_their_number() -> None:
    score = InceptionScore(5, splits=1)
    score.update(torch.arange(50), 100.0 * torch.eye(5).repeat(10, 1))
    assert score.compute()["inception_score"] == pytest.approx(5)
