"""Semantic losses against their formulas in numpy, with angles in place of polynomials."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from models.losses.semantic import (
    SemanticLoss,
    SemanticLossConfig,
    annealed_blend,
    cosface,
    high_levels,
    l_softmax,
    level_weights,
    proxy_nca,
    soft_triple,
    sphereface,
)

LOSSES = {
    "cosface": cosface,
    "l_softmax": l_softmax,
    "sphereface": sphereface,
    "soft_triple": soft_triple,
    "proxy_nca": proxy_nca,
}


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def classes() -> torch.Tensor:
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.randint(-1, 7, (40,), generator=torch.Generator().manual_seed(2))


def softmax_loss(logits: np.ndarray, labels: torch.Tensor) -> float:
    """Mean cross entropy over the vectors with a class."""
    rows = [row for row in range(len(labels)) if labels[row] >= 0]
    each = [np.log(np.exp(logits[row]).sum()) - logits[row, labels[row]] for row in rows]
    return float(np.mean(each))


def cosines(vectors: torch.Tensor, classes: torch.Tensor) -> np.ndarray:
    v, w = vectors.numpy(), classes.numpy()
    return v @ w.T / np.linalg.norm(v, axis=1)[:, None] / np.linalg.norm(w, axis=1)


def test_cosface(vectors: torch.Tensor, classes: torch.Tensor, labels: torch.Tensor) -> None:
    logits = cosines(vectors, classes)
    for row, label in enumerate(labels.tolist()):
        logits[row, label] -= 0.2  # that of -1 is left out anyway
    wanted = softmax_loss(16 * logits, labels)
    assert cosface(vectors, classes, labels, scale=16.0, margin=0.2).item() == pytest.approx(wanted, rel=1e-10)
    # lengths do not matter
    assert cosface(3 * vectors, classes / 5, labels, scale=16.0, margin=0.2).item() == pytest.approx(
        wanted, rel=1e-10
    )


@pytest.mark.parametrize("margin", [1, 2, 3, 4])
@pytest.mark.parametrize("blend", [0.0, 5.0])
@pytest.mark.parametrize("unit", [False, True], ids=["l_softmax", "sphereface"])
def test_angular_margins(
    vectors: torch.Tensor, classes: torch.Tensor, labels: torch.Tensor, margin: int, blend: float, unit: bool
) -> None:
    w = classes / classes.norm(dim=1, keepdim=True) if unit else classes
    logits = (vectors @ w.T).numpy()
    angles = np.arccos(cosines(vectors, classes))
    for row, label in enumerate(labels.tolist()):
        angle = angles[row, label]
        k = math.floor(margin * angle / math.pi)
        psi = (-1) ** k * math.cos(margin * angle) - 2 * k
        size = vectors[row].norm().item() * w[label].norm().item()
        logits[row, label] = size * (blend * math.cos(angle) + psi) / (1 + blend)
    found = (sphereface if unit else l_softmax)(vectors, classes, labels, margin=margin, blend=blend)
    assert found.item() == pytest.approx(softmax_loss(logits, labels), rel=1e-10)


def test_a_margin_of_one_is_the_plain_softmax(
    vectors: torch.Tensor, classes: torch.Tensor, labels: torch.Tensor
) -> None:
    wanted = torch.nn.functional.cross_entropy(vectors @ classes.T, labels, ignore_index=-1)
    torch.testing.assert_close(l_softmax(vectors, classes, labels, margin=1), wanted)


def test_the_angular_target_falls_all_the_way() -> None:
    """From a class's own direction to the opposite one, over every joint of psi."""
    angles = torch.linspace(0, math.pi, 181, dtype=torch.float64)
    vectors = torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles)], 1)
    class_vectors = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]], dtype=torch.float64)  # the second is never any nearer
    losses = [l_softmax(v[None], class_vectors, torch.tensor([0]), margin=4).item() for v in vectors]
    assert np.all(np.diff(losses) > 0)
    assert losses[-1] == pytest.approx(math.log1p(math.exp(7)))  # psi(pi) = 1 - 8
    assert losses[0] == pytest.approx(math.log1p(math.exp(-1)))


def test_soft_triple(vectors: torch.Tensor, labels: torch.Tensor) -> None:
    centers = torch.randn(7, 3, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    unit = centers.numpy() / np.linalg.norm(centers.numpy(), axis=2, keepdims=True)
    v = vectors.numpy() / np.linalg.norm(vectors.numpy(), axis=1, keepdims=True)
    logits = np.zeros((40, 7))
    for row in range(40):
        for c in range(7):
            similarity = unit[c] @ v[row]
            weight = np.exp(similarity / 0.1)
            logits[row, c] = (weight * similarity).sum() / weight.sum() - 0.01 * (labels[row].item() == c)
    pairs = [
        math.sqrt(2 + 1e-5 - 2 * unit[c, a] @ unit[c, b]) for c in range(7) for a in range(3) for b in range(a + 1, 3)
    ]
    wanted = softmax_loss(20 * logits, labels)
    assert soft_triple(vectors, centers, labels, merge=0.0).item() == pytest.approx(wanted, rel=1e-10)
    wanted += 0.2 * sum(pairs) / (7 * 3 * 2)
    assert soft_triple(vectors, centers, labels).item() == pytest.approx(wanted, rel=1e-10)


def test_soft_triple_of_one_center_is_a_cosine_softmax(
    vectors: torch.Tensor, classes: torch.Tensor, labels: torch.Tensor
) -> None:
    wanted = cosface(vectors, classes, labels, scale=20.0, margin=0.01)
    torch.testing.assert_close(soft_triple(vectors, classes[:, None], labels), wanted)


def test_proxy_nca(vectors: torch.Tensor, classes: torch.Tensor, labels: torch.Tensor) -> None:
    distance = 2 - 2 * cosines(vectors, classes)
    assert proxy_nca(vectors, classes, labels).item() == pytest.approx(softmax_loss(-distance, labels), rel=1e-10)
    each = []
    for row, label in enumerate(labels.tolist()):
        if label >= 0:
            others = np.delete(np.exp(-3 * distance[row]), label)
            each.append(3 * distance[row, label] + np.log(others.sum()))
    found = proxy_nca(vectors, classes, labels, scale=3.0, exclude_target=True)
    assert found.item() == pytest.approx(np.mean(each), rel=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(
    name: str, vectors: torch.Tensor, classes: torch.Tensor, labels: torch.Tensor
) -> None:
    class_vectors = torch.stack([classes, classes.flip(0) + 0.3], 1) if name == "soft_triple" else classes
    arguments = (vectors[:8].requires_grad_(), class_vectors.requires_grad_())
    assert gradcheck(lambda v, w: LOSSES[name](v, w, labels[:8]), arguments)


@pytest.mark.parametrize("name", LOSSES)
def test_void_vectors_take_no_part(
    name: str, vectors: torch.Tensor, classes: torch.Tensor, labels: torch.Tensor
) -> None:
    class_vectors = classes[:, None] if name == "soft_triple" else classes
    loss = LOSSES[name]
    kept = labels >= 0
    assert 0 < kept.sum() < len(labels)
    torch.testing.assert_close(loss(vectors, class_vectors, labels), loss(vectors[kept], class_vectors, labels[kept]))
    spoiled = torch.where(kept[:, None], vectors, math.nan)
    torch.testing.assert_close(loss(spoiled, class_vectors, labels), loss(vectors, class_vectors, labels))
    void = vectors.clone().requires_grad_()
    nothing = loss(void, class_vectors, torch.full_like(labels, -1))
    assert nothing.item() == 0
    nothing.backward()
    assert torch.equal(void.grad, torch.zeros_like(void))


def test_blend_is_annealed() -> None:
    assert annealed_blend(0) == 1000
    assert annealed_blend(100) == pytest.approx(1000 / 13)
    assert annealed_blend(10**6) == 5
    assert annealed_blend(4, start=16.0, rate=0.25, power=3.0, end=1.0) == 2.0


def test_level_weights_are_those_of_the_specification() -> None:
    assert level_weights(4) == pytest.approx((1 / 2, 1 / 3, 1 / 6, 0))
    assert level_weights(4, "power") == pytest.approx((0.643, 0.286, 0.071, 0), abs=5e-4)
    assert level_weights(4, "geometric") == pytest.approx((0.636, 0.273, 0.091, 0), abs=5e-4)
    for family in ("linear", "power", "geometric"):
        weights = level_weights(6, family)
        assert sum(weights) == pytest.approx(1)
        assert list(weights) == sorted(weights, reverse=True)
        assert weights[-1] == 0
    assert [high_levels(level_weights(4), sigma) for sigma in (0.5, 0.3, 0.1, 0.0)] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", LOSSES)
def test_levels_are_weighed_slices(name: str) -> None:
    torch.manual_seed(0)
    module = SemanticLoss(SemanticLossConfig(loss=name, centers=2, scale=16.0, margin=0.2), 5, 12)
    assert module.class_vectors.shape == (5, 12)
    vectors, labels = torch.randn(20, 12), torch.randint(-1, 5, (20,))
    options = {"cosface": {"scale": 16.0, "margin": 0.2}, "l_softmax": {"blend": 1000 / 2.2}}
    options["sphereface"] = options["l_softmax"]
    wanted = 0.0
    for level, weight in enumerate((1 / 2, 1 / 3, 1 / 6)):  # and 0 for the last
        part = slice(3 * level, 3 * level + 3)
        wanted += weight * LOSSES[name](vectors[:, part], module.weight[..., part], labels, **options.get(name, {}))
    torch.testing.assert_close(module(vectors, labels, step=10), wanted)


def test_training_gathers_the_codes_of_a_class() -> None:
    torch.manual_seed(0)
    module = SemanticLoss(SemanticLossConfig(scale=16.0, margin=0.2, levels=2), 4, 8)
    codes, labels = torch.nn.Parameter(torch.randn(64, 8)), torch.arange(64) % 4
    optimizer = torch.optim.Adam([codes, *module.parameters()], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        module(codes, labels).backward()
        optimizer.step()
    unit = torch.nn.functional.normalize(codes[:, :4], dim=1)
    same = labels[:, None] == labels
    cosine = unit @ unit.T
    assert cosine[same].mean() > cosine[~same].mean() + 0.8
    assert torch.equal((unit @ module.class_vectors[:, :4].T).argmax(1), labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 1}, "levels: expected at least 2, got 1"),
        ({"family": "power", "power": 0.0}, "power: expected more than 0, got 0.0"),
        ({"family": "cubic"}, "family: expected one of .*, got 'cubic'"),
        ({"angle_margin": 0}, "angle_margin: expected more than 0, got 0"),
    ],
)
def test_mistakes_are_one_line(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        SemanticLossConfig(**options)


def test_slices_must_fit() -> None:
    with pytest.raises(ValueError, match=r"^dim: expected a multiple of 4 levels, got 30$"):
        SemanticLoss(SemanticLossConfig(), 5, 30)
