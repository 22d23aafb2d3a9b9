"""``models.extract_features`` with a tiny CLIP of random weights. Oracles: transformers, and means made by hand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import vqkernels
from models import extract_features
from models.errors import UserError
from models.extract_features import extract, load_encoder, to_square
from vqkernels.testing import assert_bitwise_equal

OPTIONS: dict[str, Any] = {"grid": 2, "batch_size": 3, "shard_images": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        projection_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    folder = tmp_path_factory.mktemp("clip")
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def test_tokens_are_projected_and_averaged(clip: Path) -> None:
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(clip).eval()
    pixels = torch.rand(3, 3, 32, 32)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    with torch.no_grad():
        # the model's own path from a token to the text space, which it takes for the class token alone
        hidden = model.vision_model((pixels - mean) / std).last_hidden_state
        tokens = model.visual_projection(model.vision_model.post_layernorm(hidden))
        embedding = model((pixels - mean) / std).image_embeds
    # float32 products of 16 numbers, in another order
    assert float((tokens[:, 0] - embedding).abs().max()) <= 64 * 2.0**-24 * float(tokens.abs().max())
    by_patch = tokens[:, 1:].reshape(3, 4, 4, 8)
    got = load_encoder(str(clip), grid=2).encode(pixels)
    for row in range(2):
        for column in range(2):
            square = by_patch[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            error = (got[:, row, column] - square.mean(dim=(1, 2))).abs().max()
            assert float(error) <= 64 * 2.0**-24 * float(tokens.abs().max())


def test_shards_are_made_once_and_feed_kmeans(
    clip: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "images"
    shutil.copytree(photo_folder, images)
    (images / "broken.png").write_bytes(b"no image")
    done = extract(images, tmp_path / "rows", model=str(clip), **OPTIONS)
    assert done == {"images": 11, "written": 3, "unreadable": 1}
    shards = sorted((tmp_path / "rows").glob("*.npy"))
    rows = np.concatenate([np.load(path) for path in shards])
    assert rows.shape == (10 * 2 * 2, 8)
    assert rows.dtype == np.float32
    result = vqkernels.kmeans(tmp_path / "rows", 5)
    assert_bitwise_equal(result.centroids, vqkernels.kmeans(rows, 5).centroids)
    # a shard that was cut off is made again, to the same bytes, the others are left alone
    kept = [path.read_bytes() for path in shards]
    shards[1].unlink()
    (tmp_path / "rows" / ".shard_00001.npy.partial").write_bytes(b"cut off")
    assert extract(images, tmp_path / "rows", model=str(clip), **OPTIONS)["written"] == 1
    assert [path.read_bytes() for path in shards] == kept
    monkeypatch.setattr(extract_features, "load_encoder", lambda *_, **__: pytest.fail("nothing is missing"))
    assert extract(images, tmp_path / "rows", model=str(clip), **OPTIONS)["written"] == 0
    with pytest.raises(UserError, match="other images or settings"):
        extract(images, tmp_path / "rows", model=str(clip), **{**OPTIONS, "grid": 4})


def test_the_middle_square_is_taken() -> None:
    image = np.zeros((40, 100, 3), dtype=np.uint8)
    image[:, 30:70] = 255
    square = to_square(image, 40)
    assert square.shape == (3, 40, 40)
    assert float(square.min()) == 1.0
    assert to_square(image[:, :41], 20).shape == (3, 20, 20)


def test_errors_are_one_line(clip: Path, photo_folder: Path, tmp_path: Path) -> None:
    for images, grid, message in (
        (tmp_path / "nowhere", 2, "images: expected a folder"),
        (clip, 2, "expected images below"),
        (photo_folder, 3, "grid: expected a divisor of the 4 patches"),
    ):
        with pytest.raises(UserError, match=message):
            extract(images, tmp_path / "out", model=str(clip), **{**OPTIONS, "grid": grid})
