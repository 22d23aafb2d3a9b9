"""Codes and classes: counts made pixel by pixel, cluster scores written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.metrics.semantic import (
    TAUS,
    CodeClasses,
    cell_class_counts,
    cluster_scores,
    majority_labels,
    uniqueness,
)


def test_every_pixel_is_counted_in_its_cell() -> None:
    maps = torch.randint(-1, 6, (2, 8, 12), generator=torch.Generator().manual_seed(0))  # -1 and 5 are no class
    counts = cell_class_counts(maps, 4, 5)
    assert counts.shape == (2, 2, 3, 5)
    for b in range(2):
        for y in range(2):
            for x in range(3):
                cell = maps[b, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
                assert counts[b, y, x].tolist() == [int((cell == c).sum()) for c in range(5)]
    with pytest.raises(ValueError, match=r"^maps: expected multiples of 5 pixels, got 8x12$"):
        cell_class_counts(maps, 5, 5)


def test_majorities_leave_void_out() -> None:
    counts = torch.tensor([[0, 3, 3], [0, 0, 0], [1, 0, 0]])
    assert majority_labels(counts).tolist() == [1, -1, 0]


def test_codes_take_the_classes_of_their_pixels() -> None:
    classes = CodeClasses(4, 3)
    classes.update(torch.tensor([[0, 1], [1, 1]]), torch.tensor([[[9, 0, 7], [0, 4, 0]], [[0, 0, 16], [0, 6, 0]]]))
    classes.update(torch.tensor([3]), torch.tensor([[0, 0, 0]]))  # a token of void
    assert classes.counts.tolist() == [[9, 0, 7], [0, 10, 16], [0, 0, 0], [0, 0, 0]]
    assert classes.dominant.tolist() == [0, 2, -1, -1]
    scores = classes.compute()
    assert scores["classified_codes"] == 0.5
    # shares 9/16 and 16/26; codes without a class count as failures
    assert [scores[f"uniqueness_{tau}"] for tau in TAUS] == [0.5] * 5 + [0.25] + [0.0] * 3


def test_uniqueness_is_strict() -> None:
    assert uniqueness(torch.tensor([[1, 1], [0, 5]]), [0.5, 0.4, 1.0]) == [0.5, 1.0, 0.0]


def test_cluster_scores_are_their_formulas() -> None:
    random = np.random.default_rng(0)
    dominant = np.array([0] * 5 + [3] * 4 + [7] * 6 + [-1] * 3)
    points = random.standard_normal((18, 4)) + 2 * dominant[:, None]
    found = cluster_scores(torch.from_numpy(points), torch.from_numpy(dominant))
    points, labels = points[:15], dominant[:15]  # those without a class take no part
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    silhouettes = []
    for i, label in enumerate(labels):
        own = labels == label
        a = distance[i, own].sum() / (own.sum() - 1)
        b = min(distance[i, labels == other].mean() for other in {0, 3, 7} - {label})
        silhouettes.append((b - a) / max(a, b))
    assert found["silhouette"] == pytest.approx(np.mean(silhouettes), rel=1e-9)
    centers = {label: points[labels == label].mean(0) for label in (0, 3, 7)}
    spread = {k: np.linalg.norm(points[labels == k] - c, axis=1).mean() for k, c in centers.items()}
    worst = [
        max((spread[i] + spread[j]) / np.linalg.norm(centers[i] - centers[j]) for j in centers if j != i)
        for i in centers
    ]
    assert found["davies_bouldin"] == pytest.approx(np.mean(worst), rel=1e-9)


@pytest.mark.parametrize("dominant", [[-1, -1, -1], [2, 2, 2], [0, 1, 2]], ids=["void", "one", "each its own"])
def test_no_clusters_have_no_scores(dominant: list[int]) -> None:
    found = cluster_scores(torch.randn(3, 4), torch.tensor(dominant))
    assert all(math.isnan(value) for value in found.values())
