"""VGG16 against its published sizes and a loop of convolutions; files in torchvision's layout with a few numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from network_weights import waves
from torch.nn import functional as F

from models.errors import UserError
from models.pretrained import load_backbone, vgg16
from models.pretrained.vgg16 import LPIPS_LAYERS, VGG16, load_lpips_heads

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # in torchvision's numbering
POOLED = (2, 7, 14, 21, 28)  # a pool follows
CHANNELS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """The whole layout. The dense layers are one number each, so that the file is small."""
    state = {}
    for number, inputs, outputs in zip(CONVOLUTIONS, CHANNELS[:-1], CHANNELS[1:], strict=True):
        state[f"features.{number}.weight"] = (waves((outputs, inputs, 3, 3), number) / inputs**0.5).float()
        state[f"features.{number}.bias"] = waves((outputs,), number + 1).float() / 10
    for number, inputs, outputs in ((0, 25088, 4096), (3, 4096, 4096), (6, 4096, 1000)):
        state[f"classifier.{number}.weight"] = torch.tensor(1e-3).expand(outputs, inputs)
        state[f"classifier.{number}.bias"] = torch.tensor(0.5).expand(outputs)
    return state


@pytest.fixture(scope="module")
def network(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> VGG16:
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save(weights, path)
    loaded = load_backbone("vgg16", path)
    assert isinstance(loaded, VGG16)
    return loaded


def test_published_number_of_parameters() -> None:
    with torch.device("meta"):
        network = VGG16()
        images = torch.zeros(2, 3, 224, 224)
        found = {name: tuple(value.shape[1:]) for name, value in VGG16.maps(network.to("meta"), images)}
    assert sum(parameter.numel() for parameter in network.parameters()) == 138_357_544
    assert list(found) == list(network.layers)
    assert {name: found[name] for name in LPIPS_LAYERS} == {
        "relu1_2": (64, 224, 224),
        "relu2_2": (128, 112, 112),
        "relu3_3": (256, 56, 56),
        "relu4_3": (512, 28, 28),
        "relu5_3": (512, 14, 14),
    }
    assert found["logits"] == (1000, 1, 1)


def test_maps_are_rectified_convolutions(network: VGG16, weights: dict[str, torch.Tensor]) -> None:
    images = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((images + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    maps = network.features(images, network.layers[:-1])
    assert len(maps) == len(CONVOLUTIONS)
    for number, found in zip(CONVOLUTIONS, maps.values(), strict=True):
        x = F.relu(F.conv2d(x, weights[f"features.{number}.weight"], weights[f"features.{number}.bias"], padding=1))
        # sums of at most 4608 float32 products, after up to 13 of them
        torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4 * x.abs().max().item())
        if number in POOLED:
            x = F.max_pool2d(x, 2)


def test_logits_are_dense_layers_over_a_pool(network: VGG16) -> None:
    x = torch.rand(1, 512, 14, 14)
    hidden = F.relu(x.mean() * 25088 * 1e-3 + 0.5)
    hidden = F.relu(hidden * 4096 * 1e-3 + 0.5)
    wanted = hidden * 4096 * 1e-3 + 0.5
    logits = network.classifier(network._pooled(x))
    torch.testing.assert_close(logits, wanted.expand(1, 1000), rtol=1e-4, atol=0)


def test_lpips_heads_come_with_torchmetrics() -> None:
    heads = load_lpips_heads()
    assert {name: len(head) for name, head in heads.items()} == dict(
        zip(LPIPS_LAYERS, (64, 128, 256, 512, 512), strict=True)
    )
    assert all((head >= 0).all() for head in heads.values())


def test_absent_weights_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError) as caught:
        load_backbone("vgg16")
    assert str(caught.value) == (
        f"vgg16: no weights at {tmp_path}/checkpoints/vgg16-397923af.pth; get vgg16-397923af.pth from "
        "https://download.pytorch.org/models/vgg16-397923af.pth (BSD-3-Clause)"
    )


def test_a_download_of_torch_hub_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: dict[str, torch.Tensor]
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(weights, tmp_path / "checkpoints" / vgg16.INFO.file)
    assert not load_backbone("vgg16").published  # other weights under that name


def test_other_heads_are_one_line(tmp_path: Path) -> None:
    torch.save({f"lin{i}.model.1.weight": torch.zeros(1, 64, 1, 1) for i in range(5)}, tmp_path / "vgg.pth")
    with pytest.raises(UserError, match=r"^lpips: .*vgg.pth holds heads of other widths \(\[64, 64, 64, 64, 64\]\)$"):
        load_lpips_heads(tmp_path)
    torch.save({}, tmp_path / "vgg.pth")
    with pytest.raises(UserError, match=r"^lpips: .*vgg.pth holds other weights \(no 'lin0.model.1.weight'\)$"):
        load_lpips_heads(tmp_path)
