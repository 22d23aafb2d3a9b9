"""Networks of transformers with random weights, against transformers called by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch.nn import functional as F

from models.errors import UserError
from models.pretrained import Backbone, load_backbone

VIT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("networks")
    clip = transformers.CLIPVisionConfig(**VIT, projection_dim=8, image_size=32, patch_size=8)
    dino = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=20, patch_size=2
    )
    mae = transformers.ViTMAEConfig(**VIT, image_size=32, patch_size=8, mask_ratio=0.75)
    resnet = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_labels=5
    )
    segformer = transformers.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        num_labels=7,
    )
    transformers.CLIPVisionModelWithProjection(clip).save_pretrained(root / "clip")
    transformers.Dinov2Model(dino).save_pretrained(root / "dinov2")
    transformers.ViTMAEModel(mae).save_pretrained(root / "vit_mae")
    transformers.ResNetForImageClassification(resnet).save_pretrained(root / "resnet50")
    transformers.SegformerForSemanticSegmentation(segformer).save_pretrained(root / "segformer")
    return root


def load(name: str, folder: Path) -> Backbone:
    return load_backbone(name, folder / name)


def pixels(images: torch.Tensor, size: int | None, constants: tuple[tuple[float, ...], ...]) -> torch.Tensor:
    if size is not None:
        images = F.interpolate(images, (size, size), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in constants)
    return ((images + 1) / 2 - mean) / std


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_clip(folder: Path, images: torch.Tensor) -> None:
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(folder / "clip").eval()
    backbone = load("clip", folder)
    with torch.no_grad():
        wanted = model(pixel_values=pixels(images, 32, CLIP), output_hidden_states=True)
        tokens = model.visual_projection(model.vision_model.post_layernorm(wanted.last_hidden_state[:, 1:]))
    found = backbone.features(images)
    assert list(found) == ["block1", "block2", "patches"]
    assert found["patches"].shape == (2, 8, 4, 4)
    torch.testing.assert_close(found["patches"].flatten(2).mT, tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["block2"].flatten(2).mT, wanted.hidden_states[2][:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbone.embed(images), wanted.image_embeds, rtol=1e-4, atol=1e-5)


def test_dinov2_sees_sixteen_patches_a_side(folder: Path, images: torch.Tensor) -> None:
    model = transformers.Dinov2Model.from_pretrained(folder / "dinov2").eval()
    backbone = load("dinov2", folder)
    with torch.no_grad():
        wanted = model(pixel_values=pixels(images, 32, IMAGENET))
    found = backbone.features(images, ["patches"])["patches"]
    assert found.shape == (2, 16, 16, 16)
    torch.testing.assert_close(found.flatten(2).mT, wanted.last_hidden_state[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbone.embed(images), wanted.pooler_output, rtol=1e-4, atol=1e-5)


def test_mae_sees_every_patch_in_its_place(folder: Path, images: torch.Tensor) -> None:
    backbone = load("vit_mae", folder)
    model = transformers.ViTMAEModel.from_pretrained(folder / "vit_mae", mask_ratio=0.0).eval()
    with torch.no_grad():
        torch.manual_seed(3)
        shuffled = model(pixel_values=pixels(images, 32, IMAGENET))  # tokens in a random order
    found = backbone.features(images, ["patches"])["patches"].flatten(2).mT  # [B, 16, C]
    tokens = shuffled.last_hidden_state[:, 1:]
    assert not torch.equal(shuffled.ids_restore[0], torch.arange(16))
    restored = tokens.gather(1, shuffled.ids_restore[:, :, None].expand_as(tokens))
    torch.testing.assert_close(found, restored, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbone.embed(images), restored.mean(1), rtol=1e-4, atol=1e-5)


def test_resnet(folder: Path, images: torch.Tensor) -> None:
    model = transformers.ResNetForImageClassification.from_pretrained(folder / "resnet50").eval()
    backbone = load("resnet50", folder)
    with torch.no_grad():
        native = model(pixel_values=pixels(images, None, IMAGENET), output_hidden_states=True)
        scaled = model(pixel_values=pixels(images, 224, IMAGENET), output_hidden_states=True)
    found = backbone.features(images)
    assert [value.shape[1] for value in found.values()] == [8, 16, 24, 32, 5]
    torch.testing.assert_close(found["stage2"], native.hidden_states[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["logits"].flatten(1), native.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbone.logits(images), scaled.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbone.embed(images), scaled.hidden_states[-1].mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_segformer_labels_every_pixel(folder: Path, images: torch.Tensor) -> None:
    model = transformers.SegformerForSemanticSegmentation.from_pretrained(folder / "segformer").eval()
    backbone = load("segformer", folder)
    with torch.no_grad():
        wanted = model(pixel_values=pixels(images, None, IMAGENET), output_hidden_states=True)
    labels = backbone.label_map(images)
    assert labels.shape == (2, 48, 64)
    assert labels.dtype == torch.int64
    upsampled = F.interpolate(wanted.logits, (48, 64), mode="bilinear")
    assert torch.equal(labels, upsampled.argmax(1))
    assert len(labels.unique()) > 1
    found = backbone.features(images, ["stage1", "logits"])
    torch.testing.assert_close(found["stage1"], wanted.hidden_states[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["logits"], wanted.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["clip", "dinov2", "vit_mae", "resnet50", "segformer"])
def test_gradients_reach_the_images(name: str, folder: Path, images: torch.Tensor) -> None:
    backbone = load(name, folder).train()
    assert not any(module.training for module in backbone.modules())
    assert not backbone.published
    seen = images.clone().requires_grad_()
    layer = backbone.layers[-1]
    backbone.features(seen, [layer])[layer].square().mean().backward()
    assert seen.grad is not None
    assert seen.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in backbone.parameters())


@pytest.mark.parametrize("name", ["clip", "dinov2", "vit_mae", "resnet50", "segformer"])
def test_absent_weights_are_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{name}: no weights at .*/absent; get .*/.* from https://hugg.* \(.*\)$"):
        load_backbone(name, tmp_path / "absent")
    with pytest.raises(UserError, match=rf"^{name}: no weights at .*; transformers says: Error no file named "):
        load_backbone(name, tmp_path)


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    # transformers would draw them at random
    with pytest.raises(UserError, match=r"^dinov2: .*/clip holds other weights \(no .* and \d+ more\)$"):
        load_backbone("dinov2", folder / "clip")


def test_networks_without_logits_say_so(folder: Path, images: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"^clip: has no logits$"):
        load("clip", folder).logits(images)
