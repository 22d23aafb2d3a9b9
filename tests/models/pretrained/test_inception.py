"""Inception against what torch-fidelity's own network makes of weights that are a formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from network_weights import waves

from models.data.photos import to_tensor
from models.errors import UserError
from models.pretrained import load_backbone
from models.pretrained.inception import Inception

# torch-fidelity 0.4.0, FeatureExtractorInceptionV3 with the weights and crops below: the first three channels of both
# images, and mean and standard deviation of all channels of the first
GOLDEN = {
    "pool1": ((0.0018308, 0.1109434, 0.3576762), (0.0019063, 0.1030316, 0.3439357), 0.1285948, 0.1688591),
    "pool2": ((0.4796472, 0.0, 0.0881585), (0.4709804, 0.0, 0.0813559), 0.1432802, 0.1726418),
    "Mixed_6e": ((0.0, 0.2537059, 0.0), (0.0, 0.2535730, 0.0), 0.1358552, 0.1811044),
    "Mixed_7c": ((0.0, 0.4487535, 0.0), (0.0, 0.4487362, 0.0), 0.1032156, 0.1401908),
    "logits": ((-0.1105645, -0.1053286, 0.3146009), (-0.1106455, -0.1052859, 0.3146057), -0.0005355, 0.6093072),
}


def published_layout() -> dict[str, torch.Size]:
    """Names and shapes of the file, in its order; convolutions have no bias there and a batch norm each."""
    shapes: dict[str, torch.Size] = {}
    with torch.device("meta"):
        network = Inception()
    for name, value in network.state_dict().items():
        part, _, kind = name.rpartition(".")
        if part == "fc":
            shapes[name] = value.shape
        elif kind == "weight":
            shapes[f"{part}.conv.weight"] = value.shape
            for norm in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{part}.bn.{norm}"] = value.shape[:1]
    return shapes


def weights() -> dict[str, torch.Tensor]:
    state = {}
    for number, (name, shape) in enumerate(published_layout().items()):
        value = waves(shape, number)
        if name.endswith(".conv.weight"):
            value = value * (6 / value[0].numel()) ** 0.5
        elif name.endswith("running_var"):
            value = 0.7 + 0.2 * value
        elif name.endswith(".bn.weight"):
            value = 1 + 0.3 * value
        else:
            value = 0.2 * value
        state[name] = value.float()
    return state


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Inception:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    counts = {name.replace("weight", "num_batches_tracked"): torch.tensor(0) for name in published_layout()}
    torch.save({**{name: count for name, count in counts.items() if ".bn." in name}, **weights()}, path)
    loaded = load_backbone("inception", path)
    path.unlink()
    assert isinstance(loaded, Inception)
    return loaded


def test_layout_has_as_many_numbers_as_the_published_file() -> None:
    trained = [shape.numel() for name, shape in published_layout().items() if "running" not in name]
    assert sum(trained) == 23_850_960


def test_it_computes_what_torch_fidelity_does(network: Inception) -> None:
    crops = [skimage.data.chelsea()[80:150, 100:153], skimage.data.coffee()[200:270, 200:253]]
    images = torch.cat([to_tensor(crop) for crop in crops])
    found = {name: value.mean((2, 3)) for name, value in network.features(images).items()}
    assert torch.equal(found["Mixed_7c"], network.embed(images))
    found["logits"] = network.logits(images)
    for name, (first, second, mean, deviation) in GOLDEN.items():
        value = found[name]
        got = [*value[0, :3], *value[1, :3], value[0].mean(), value[0].std()]
        # float32 on both sides; another pool or another rule of resizing changes the fourth digit or an earlier one
        np.testing.assert_allclose(got, [*first, *second, mean, deviation], rtol=0, atol=1e-5, err_msg=name)


def test_images_are_rounded_and_scaled_by_the_first_rule_of_tensorflow(network: Inception) -> None:
    image = torch.linspace(-1, 1, 2 * 3).reshape(1, 1, 2, 3).expand(1, 3, 2, 3)
    scaled = network.scale(image)
    assert scaled.shape == (1, 3, 299, 299)
    pixels = torch.tensor([[0.0, 51.0, 102.0], [153.0, 204.0, 255.0]])
    row, column = 100, 250  # places 200 / 299 and 750 / 299: the second is beyond the last pixel
    top = pixels[0, 2]
    wanted = top + 200 / 299 * (pixels[1, 2] - top)
    torch.testing.assert_close(scaled[0, 0, row, column], wanted / 127.5 - 1, rtol=1e-5, atol=1e-6)


def test_no_gradient_reaches_the_images(network: Inception) -> None:
    assert not network.embed(torch.zeros(1, 3, 32, 32, requires_grad=True)).requires_grad


def test_other_weights_are_one_line(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"^inception: .*weights.pth holds other weights \(no 'Conv2d_1a_3x3.conv"):
        load_backbone("inception", tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"^inception: no weights at .*; get weights-inception-2015-12-05-6726825d"):
        load_backbone("inception", tmp_path)
