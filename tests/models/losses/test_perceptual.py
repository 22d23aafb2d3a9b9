"""Perceptual losses against their formulas in numpy, on a network whose maps are known; on the embedded one too."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from toy_backbone import ToyBackbone

from models.errors import UserError
from models.losses.perceptual import (
    FeatureDistance,
    UnitDistance,
    build_perceptual,
    layer_set,
    lpips,
    mixed_layers,
)
from models.pretrained.efficientnet_lite0 import EfficientNetLite0
from models.pretrained.vgg16 import LPIPS_LAYERS


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def wrong() -> torch.Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def maps(images: torch.Tensor) -> dict[str, np.ndarray]:
    pixels = images.double().numpy()
    red, green, blue = (pixels[:, channel] for channel in range(3))
    coarse = blue.reshape(len(blue), 4, 2, 4, 2).mean((2, 4))
    mean = coarse.mean((1, 2))
    return {
        "fine": np.stack([red, green, red - green], 1),
        "coarse": coarse[:, None],
        "logits": np.stack([mean, 2 * mean], 1)[:, :, None, None],
    }


def test_feature_distance_is_the_weighted_mean_square(images: torch.Tensor, wrong: torch.Tensor) -> None:
    weights = {"fine": 0.5, "logits": 2.0}
    loss = FeatureDistance(ToyBackbone(), weights)
    seen, wanted = maps(wrong), maps(images)
    each = [sum(w * ((seen[n][i] - wanted[n][i]) ** 2).mean() for n, w in weights.items()) for i in range(3)]
    np.testing.assert_allclose(loss.per_image(wrong, images), each, rtol=1e-5)
    assert loss(wrong, images).item() == pytest.approx(np.mean(each), rel=1e-5)
    assert loss(images, images).item() == 0


@pytest.mark.parametrize("uniform", [True, False], ids=["uniform", "learned"])
def test_unit_distance_is_the_formula_of_lpips(images: torch.Tensor, wrong: torch.Tensor, uniform: bool) -> None:
    heads = {"fine": torch.tensor([0.5, 1.0, 2.0]), "coarse": torch.tensor([3.0])}
    if uniform:
        heads["fine"] = torch.tensor([0.5])
    images[0, :2, 0, 0] = 0  # a place where the map is 0
    loss = UnitDistance(ToyBackbone(), heads)
    wanted = np.zeros(3)
    for name, head in heads.items():
        a, b = (
            x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-10) for x in (maps(wrong)[name], maps(images)[name])
        )
        wanted += ((a - b) ** 2 * head.numpy()[:, None, None]).sum(1).mean((1, 2))
    np.testing.assert_allclose(loss.per_image(wrong, images), wanted, rtol=1e-5)
    assert loss(wrong, images).item() == pytest.approx(wanted.mean(), rel=1e-5)
    assert abs(loss(images, images).item()) < 1e-6


def test_gradients_are_those_of_finite_differences(images: torch.Tensor, wrong: torch.Tensor) -> None:
    images, wrong = images[:1].double(), wrong[:1].double().requires_grad_()
    for loss in (
        FeatureDistance(ToyBackbone(), {"fine": 0.5, "coarse": 1.0, "logits": 2.0}),
        UnitDistance(ToyBackbone(), {"fine": torch.tensor([0.5, 1.0, 2.0])}),
        UnitDistance(ToyBackbone(), {"fine": torch.ones(1)}),
    ):
        assert gradcheck(lambda x, loss=loss: loss(x, images), (wrong,))


def test_kept_targets_are_the_same_and_have_no_gradient(images: torch.Tensor, wrong: torch.Tensor) -> None:
    loss = FeatureDistance(ToyBackbone(), {"fine": 1.0})
    images.requires_grad_()
    kept = loss.targets(images)
    assert torch.equal(loss(wrong, kept), loss(wrong, images))
    assert not kept["fine"].requires_grad
    seen = wrong.requires_grad_()
    loss(seen, images).backward()
    assert images.grad is None
    assert seen.grad is not None


def test_logits_can_be_of_scaled_images(images: torch.Tensor, wrong: torch.Tensor) -> None:
    backbone = ToyBackbone()
    native, scaled = (
        FeatureDistance(backbone, {"fine": 1.0, "logits": 1.0}, scale_logits=scale) for scale in (False, True)
    )
    fine = FeatureDistance(backbone, {"fine": 1.0})(wrong, images)
    difference = (backbone.logits(wrong) - backbone.logits(images)).square().mean()
    torch.testing.assert_close(scaled(wrong, images), fine + difference)
    assert not torch.isclose(native(wrong, images), scaled(wrong, images), rtol=1e-3)
    alone = FeatureDistance(backbone, {"logits": 1.0}, scale_logits=True)
    torch.testing.assert_close(alone(wrong, images), difference)


def test_layer_sets_are_those_of_seqgan() -> None:
    low = list(LPIPS_LAYERS)
    assert list(layer_set("vgg16", "low")) == low
    assert list(layer_set("vgg16", "sem")) == ["relu5_3", "logits"]
    assert list(layer_set("vgg16", "a")) == [*low, "logits"]
    assert list(layer_set("vgg16", "b")) == ["relu2_2", "relu3_3", "relu4_3", "relu5_3", "logits"]
    assert list(layer_set("vgg16", "c")) == ["relu3_3", "relu4_3", "relu5_3", "logits"]
    assert list(layer_set("vgg16", "d")) == ["relu4_3", "relu5_3", "logits"]
    assert list(layer_set("vgg16", "e")) == ["logits"]
    for name in ("low", "sem", "a", "b", "c", "d", "e"):  # counterparts, one for one
        ours, theirs = layer_set("efficientnet_lite0", name), layer_set("vgg16", name)
        assert len(ours) == len(theirs)
        assert set(ours) <= set(EfficientNetLite0.layers)


def test_alpha_mixes_low_and_sem() -> None:
    assert mixed_layers("vgg16", 0.0) == layer_set("vgg16", "low")
    assert mixed_layers("vgg16", 1.0) == layer_set("vgg16", "sem")
    mixed = mixed_layers("vgg16", 0.25)
    assert mixed == {
        "relu1_2": 0.75,
        "relu2_2": 0.75,
        "relu3_3": 0.75,
        "relu4_3": 0.75,
        "relu5_3": 1.0,  # in both
        "logits": 0.25,
    }


def test_the_embedded_network_by_name(efficientnet: EfficientNetLite0) -> None:
    clean = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for options in ({}, {"layers": "sem"}, {"alpha": 0.5}):
        loss = build_perceptual("efficientnet_lite0", **options)
        assert isinstance(loss, UnitDistance if not options else FeatureDistance)
        assert not list(filter(lambda parameter: parameter.requires_grad, loss.parameters()))
        near, far = ((clean + scale * noise).requires_grad_() for scale in (0.05, 0.5))
        assert 0 < loss(near, clean) < loss(far, clean)
        loss(far, clean).backward()
        assert far.grad is not None
        assert far.grad.isfinite().all()
        assert far.grad.abs().max() > 0


def test_black_images_have_finite_gradients(efficientnet: EfficientNetLite0) -> None:
    loss = UnitDistance(efficientnet, {name: torch.ones(1) for name in layer_set("efficientnet_lite0", "lpips")})
    black = torch.full((1, 3, 32, 32), -1.0, requires_grad=True)
    loss(black, torch.rand(1, 3, 32, 32) * 2 - 1).backward()
    assert black.grad is not None
    assert black.grad.isfinite().all()


def test_autocast_leaves_the_features_alone(efficientnet: EfficientNetLite0) -> None:
    loss = FeatureDistance(efficientnet, layer_set("efficientnet_lite0", "low"))
    a, b = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    plain = loss(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(a, b), plain)


def test_lpips_weighs_with_the_learned_heads() -> None:
    class Vgg(ToyBackbone):
        layers = LPIPS_LAYERS

        def maps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
            for name, width in zip(LPIPS_LAYERS, (64, 128, 256, 512, 512), strict=True):
                yield (
                    name,
                    images.mean(1, keepdim=True).expand(-1, width, -1, -1)
                    * torch.arange(1, width + 1)[:, None, None],
                )

    up, down = torch.ones(1, 3, 2, 2), -torch.ones(1, 3, 2, 2)
    loss = lpips(Vgg())
    # opposite unit vectors u: (2 u)^2 weighed by the heads
    wanted = 0.0
    for layer in LPIPS_LAYERS:
        head = loss.get_buffer(f"head_{layer}").double()
        unit = torch.arange(1, len(head) + 1).double()
        unit = unit / unit.norm()
        wanted += (4 * unit.square() * head).sum().item()
    assert loss(up, down).item() == pytest.approx(wanted, rel=1e-5)


def test_mistakes_are_one_line() -> None:
    with pytest.raises(
        UserError, match=r"^perceptual: expected one of \['efficientnet_lite0', 'vgg16'\], got 'clip'$"
    ):
        layer_set("clip", "low")
    with pytest.raises(UserError, match=r"^layers: expected one of \['a', .*\], got 'high'$"):
        build_perceptual("vgg16", "high")
    with pytest.raises(ValueError, match=r"^alpha: expected a number from 0 to 1, got 2$"):
        mixed_layers("vgg16", 2)
    with pytest.raises(
        UserError, match=r"^vgg16: no weights at .*; get vgg16-397923af.pth from .* \(BSD-3-Clause\)$"
    ):
        build_perceptual("lpips", path="absent.pth")
