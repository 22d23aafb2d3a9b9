"""Scores over data sets: what they are of, interruptions, clips, generated images. Oracle: loops over images."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.metrics
import torch
from PIL import Image
from toy_backbone import ToyBackbone

from models.data.pixels import to_image, to_tensor
from models.data.source import open_source
from models.data.transforms import Crop
from models.errors import UserError
from models.evaluation import measures
from models.evaluation.data_set import DataSetConfig, evaluate_samples, evaluate_tokenizer
from models.metrics.frechet import FrechetDistance, PrecisionRecall
from models.pretrained.efficientnet_lite0 import EfficientNetLite0
from models.tokenizers import Tokenizer

SCENES = "scenes:length=30,size=32x48"


@pytest.fixture
def config(photo_folder: Path) -> DataSetConfig:
    """Nine photographs of 128 pixels, in three batches."""
    return DataSetConfig(data=str(photo_folder), split="train", size=32, batch_size=4, metrics=("psnr", "codes"))


def crops(data: str, split: str = "train", size: int = 32) -> list[torch.Tensor]:  # each [1, 3, S, S]
    source, crop = open_source(data, split), Crop(size=size, resize=size, place="center")
    found = []
    for index in range(len(source)):
        arrays = crop(source.read(index), np.random.default_rng(0))
        found.append(to_tensor(arrays["image"].transpose(1, 2, 0)))
    return found


@torch.no_grad()
def through(tokenizer: Tokenizer, image: torch.Tensor) -> torch.Tensor:
    return tokenizer.decode(tokenizer.encode(image))


def test_scores_are_those_of_single_images(
    tokenizer: Tokenizer, config: DataSetConfig, photo_folder: Path, tmp_path: Path, efficientnet: EfficientNetLite0
) -> None:
    everything = dataclasses.replace(config, metrics=("psnr", "ssim", "perceptual", "cosine", "fd", "codes"))
    record = evaluate_tokenizer(tokenizer, everything, tmp_path / "scores.json", about={"run": "r"})
    images = crops(str(photo_folder))
    assert record["images"] == len(images) == 9
    psnr, ssim, codes, pairs = [], [], [], FrechetDistance(1280)
    for image in images:
        other = through(tokenizer, image).clamp(-1, 1)
        a, b = (((x[0].double() + 1) / 2).numpy() for x in (image, other))
        psnr.append(skimage.metrics.peak_signal_noise_ratio(a, b, data_range=1.0))
        windows = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        ssim.append(skimage.metrics.structural_similarity(a, b, channel_axis=0, data_range=1.0, **windows))
        codes.append(tokenizer.encode(image).reshape(-1, 2))
        pairs.update(efficientnet.embed(image), efficientnet.embed(other))
    scores = record["scores"]
    assert scores["psnr"] == pytest.approx(np.mean(psnr), rel=1e-6)
    assert scores["ssim"] == pytest.approx(np.mean(ssim), rel=1e-6)
    assert scores["fd_efficientnet"] == pytest.approx(pairs.compute()["distance"], rel=1e-4)
    assert 0 < scores["cosine_efficientnet"] < 1
    assert scores["perceptual_efficientnet"] > 0
    used = [len(column.unique()) / 64 for column in torch.cat(codes).T]
    assert scores["utilization"] == pytest.approx(np.mean(used))
    assert (record["tokens_per_image"], record["bits_per_token"], record["bits_per_pixel"]) == (
        16,
        12,
        16 * 12 / 1024,
    )


def test_the_record_says_what_it_is_of(tokenizer: Tokenizer, config: DataSetConfig, tmp_path: Path) -> None:
    out = tmp_path / "folder" / "scores.json"
    record = evaluate_tokenizer(
        tokenizer, dataclasses.replace(config, metrics=("psnr", "fd")), out, about={"run": "r"}
    )
    written = json.loads(out.read_text())
    assert written == record
    assert written["set"] == f"{config.data}, train"
    assert written["fingerprint"] == open_source(config.data, "train").fingerprint
    assert written["resize"] == "shorter side to 32 pixels, bicubic with antialiasing (Pillow)"
    assert written["crop"] == "the middle 32x32 pixels"
    assert written["pixels"] == "float64 in [0, 1], clipped, not rounded to 8 bits"
    assert written["tool"].startswith("models.evaluate of vqkernels ")
    assert written["run"] == "r"
    assert written["skipped"] == 0
    assert written["weights"] == {
        "fd_efficientnet": "efficientnet_lite0: efficientnet-lite0-57934424.pth, Apache-2.0"
    }
    assert {path.name for path in out.parent.iterdir()} == {"scores.json", "scores_worst.png"}


def test_the_worst_images_are_drawn_worst_first(tokenizer: Tokenizer, config: DataSetConfig, tmp_path: Path) -> None:
    record = evaluate_tokenizer(tokenizer, config, tmp_path / "scores.json")
    images = crops(config.data)
    source = open_source(config.data, "train")
    errors = {
        source.name(n): (image - through(tokenizer, image).clamp(-1, 1)).square().mean().item()
        for n, image in enumerate(images)
    }
    ranked = sorted(errors, key=lambda name: -errors[name])[:8]
    assert [entry["name"] for entry in record["worst"]] == ranked
    for entry in record["worst"]:
        assert entry["psnr"] == pytest.approx(-10 * math.log10(errors[entry["name"]] / 4), rel=1e-4)
    picture = np.asarray(Image.open(tmp_path / "scores_worst.png"))
    assert picture.shape == (16 + 2 * 32, 8 * 32, 3)
    first = next(n for n in range(9) if source.name(n) == ranked[0])
    np.testing.assert_array_equal(picture[16:48, :32], to_image(images[first][0]))
    np.testing.assert_allclose(picture[48:, :32], to_image(through(tokenizer, images[first])[0]), atol=1)


def test_an_interrupted_evaluation_goes_on(
    tokenizer: Tokenizer, config: DataSetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, metrics=("psnr", "fd", "codes"), batch_size=2, save_every=1)
    whole = evaluate_tokenizer(tokenizer, config, tmp_path / "whole.json")
    seen, encode = [], tokenizer.encode

    def interrupted(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        if len(seen) == 4:
            raise KeyboardInterrupt
        return encode(images)

    monkeypatch.setattr(tokenizer, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_tokenizer(tokenizer, config, tmp_path / "broken.json")
    assert [path.name for path in tmp_path.glob(".broken*")] == [".broken.json.partial"]
    # loading and saving in another way is still the same evaluation
    again = dataclasses.replace(config, save_every=7)
    assert evaluate_tokenizer(tokenizer, again, tmp_path / "broken.json") == whole
    assert seen[4:6] == [2, 1]  # the batches after the third; then the pictures of the worst
    assert not list(tmp_path.glob(".broken*"))


def test_another_evaluation_does_not_go_on_with_it(
    tokenizer: Tokenizer, config: DataSetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, batch_size=2, save_every=1)
    with monkeypatch.context() as patch:
        patch.setattr(measures.CodesMeasure, "update", _fail_at(3, measures.CodesMeasure.update))
        with pytest.raises(KeyboardInterrupt):
            evaluate_tokenizer(tokenizer, config, tmp_path / "scores.json")
    other = dataclasses.replace(config, size=64)
    found = evaluate_tokenizer(tokenizer, other, tmp_path / "scores.json")
    assert found == evaluate_tokenizer(tokenizer, other, tmp_path / "fresh.json")


def _fail_at(call: int, function: Any) -> Any:
    calls = []

    def failing(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*args)

    return failing


def test_what_was_left_behind_damaged_is_one_line(
    tokenizer: Tokenizer, config: DataSetConfig, tmp_path: Path
) -> None:
    (tmp_path / ".scores.json.partial").mkdir()
    (tmp_path / ".scores.json.partial" / "seen_0.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"seen_0.pt: cannot go on with it \(UnpicklingError\); delete it$"):
        evaluate_tokenizer(tokenizer, config, tmp_path / "scores.json")


def test_unreadable_images_are_counted_and_limits_kept(
    tokenizer: Tokenizer, config: DataSetConfig, photo_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "photos"
    broken.mkdir()
    for number, path in enumerate(sorted(photo_folder.iterdir())):
        (broken / path.name).write_bytes(path.read_bytes() if number not in (0, 1, 2, 3, 6) else b"no image")
    config = dataclasses.replace(config, data=str(broken), save_every=1)
    record = evaluate_tokenizer(tokenizer, config, tmp_path / "scores.json")
    assert (record["images"], record["skipped"]) == (4, 5)
    record = evaluate_tokenizer(tokenizer, dataclasses.replace(config, limit=6), tmp_path / "scores.json")
    assert (record["images"], record["skipped"]) == (2, 4)


def test_label_maps_give_semantic_scores(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = DataSetConfig(data=SCENES, split="val", size=32, batch_size=2, metrics=("semantic",))
    record = evaluate_tokenizer(tokenizer, config, tmp_path / "scores.json", high=4)
    scores = record["scores"]
    table = [scores[f"uniqueness_{tau / 10}"] for tau in range(1, 10)]
    assert table == sorted(table, reverse=True)
    assert 0 < scores["classified_codes"] <= 1
    assert table[0] <= scores["classified_codes"]
    assert scores["silhouette"] != scores["silhouette_high"]
    assert "worst" not in record  # without PSNR there is no order


def test_clips_are_scored_frame_by_frame_and_as_clips(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clips(ToyBackbone):
        published = True

        def embed(self, videos: torch.Tensor) -> torch.Tensor:
            assert videos.shape[1:] == (3, 3, 32, 32)
            means = videos.mean((2, 3, 4))  # [B, T]
            return torch.nn.functional.pad(means, (0, 397))

    monkeypatch.setattr(measures, "load_backbone", lambda name, path: {"i3d": _published(Clips)}[name])
    config = DataSetConfig(
        data=SCENES + ",frames=3", split="val", size=32, batch_size=2, metrics=("psnr", "fvd", "codes")
    )
    record = evaluate_tokenizer(tokenizer, config, tmp_path / "scores.json")
    assert record["images"] == 9
    assert record["tokens_per_image"] == 16
    source, crop = open_source(config.data, "val"), config.crop
    distance = FrechetDistance(3, correction=0)
    for index in range(3):
        clip = torch.from_numpy(crop(source.read(index), np.random.default_rng(0))["image"]).float() / 127.5 - 1
        other = through(tokenizer, clip).clamp(-1, 1)
        distance.update(clip.mean((1, 2, 3))[None], other.mean((1, 2, 3))[None])
    assert record["scores"]["fvd"] == pytest.approx(distance.compute()["distance"], rel=1e-4, abs=1e-7)
    assert {entry["frame"] for entry in record["worst"]} == {0, 1, 2}
    assert len(record["worst"]) == 8
    still = dataclasses.replace(config, data=SCENES)
    with pytest.raises(UserError, match=r"^fvd: expected clips of several frames, got images$"):
        evaluate_tokenizer(tokenizer, still, tmp_path / "scores.json")


def _published(kind: type[ToyBackbone], published: bool = True) -> ToyBackbone:
    backbone = kind()
    backbone.published = published
    return backbone


def test_names_belong_to_published_weights(
    tokenizer: Tokenizer, config: DataSetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "load_backbone", lambda name, path: _published(ToyBackbone, published=False))
    for metric in ("rfid", "inception_score", "lpips", "fvd"):
        with pytest.raises(
            UserError, match=rf"^{metric}: only computed with the published weights of .*; got others "
        ):
            evaluate_tokenizer(tokenizer, dataclasses.replace(config, metrics=(metric,)), tmp_path / "scores.json")
    other = dataclasses.replace(config, metrics=("fd", "precision_recall"), backbone="inception")
    record = evaluate_tokenizer(tokenizer, other, tmp_path / "scores.json")
    assert set(record["scores"]) == {"fd_inception", "precision_inception", "recall_inception"}
    assert record["weights"]["fd_inception"] == "toy: other weights than none, none"
    monkeypatch.setattr(measures, "load_backbone", lambda name, path: _published(ToyBackbone))
    known = dataclasses.replace(other, metrics=("fd", "rfid", "inception_score"))
    scores = evaluate_tokenizer(tokenizer, known, tmp_path / "scores.json")["scores"]
    assert scores["rfid"] == scores["fd_inception"] == record["scores"]["fd_inception"]
    assert scores["inception_score"] >= 1


def test_generated_images_are_compared_with_a_data_set(
    config: DataSetConfig, photo_folder: Path, tmp_path: Path, efficientnet: EfficientNetLite0
) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    images = crops(str(photo_folder))
    for number in range(12):
        noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        picture = to_image(images[number][0]) if number < 6 else noise
        Image.fromarray(picture).save(samples / f"{number:02d}.png")
    config = dataclasses.replace(config, metrics=("fd", "precision_recall"))
    record = evaluate_samples(samples, config, tmp_path / "scores.json")
    assert (record["images"], record["generated_images"]) == (9, 12)
    distance, coverage = FrechetDistance(1280), PrecisionRecall()
    real = torch.cat([efficientnet.embed(image) for image in images])
    fake = torch.cat(
        [efficientnet.embed(to_tensor(np.asarray(Image.open(path)))) for path in sorted(samples.iterdir())]
    )
    distance.update(real, fake)
    coverage.update(torch.arange(9), real, None)
    coverage.update(torch.arange(12), None, fake)
    wanted = {f"{name}_efficientnet": value for name, value in coverage.compute().items()}
    wanted["fd_efficientnet"] = pytest.approx(distance.compute()["distance"], rel=1e-4)
    assert record["scores"] == wanted
    same = evaluate_samples(samples, dataclasses.replace(config, limit=6), tmp_path / "scores.json")
    assert same["scores"]["precision_efficientnet"] == same["scores"]["recall_efficientnet"] == 1
    assert abs(same["scores"]["fd_efficientnet"]) < 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 36}, "size: expected a multiple of 8 pixels, got 36"),
        ({"metrics": ("psnr", "mse")}, r"metrics: expected some of \['psnr', .*\], got \['mse'\]"),
        ({"metrics": ()}, r"metrics: expected some of \['psnr', .*\], got none"),
        ({"metrics": ("fid",)}, r"metrics: expected some of \['psnr', .*\], got \['fid'\]"),
        ({"backbone": "vgg19"}, r"backbone: expected one of \['clip', .*\], got 'vgg19'"),
        ({"data": "/nowhere"}, r"data: expected .* a folder of images, got '/nowhere'"),
        ({"metrics": ("semantic",)}, "semantic: expected data with label maps and named classes, got none"),
        ({"metrics": ("ms_ssim",)}, r"ms_ssim: expected images of at least 176 pixels, got \[32, 32\]"),
        ({"metrics": ("rfid",), "weights": Path("/nowhere")}, r"inception: no weights at /nowhere; get weights-.*"),
        ({"limit": 3, "metrics": ("precision_recall",)}, "images: expected more than 3 of each set .*, got 3 and 3"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(
    tokenizer: Tokenizer, config: DataSetConfig, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((UserError, ValueError), match=f"^{message}$"):
        evaluate_tokenizer(tokenizer, dataclasses.replace(config, **changes), tmp_path / "scores.json")


def test_impossible_options_are_one_line() -> None:
    for name in ("size", "batch_size", "save_every", "limit"):
        with pytest.raises(ValueError, match=f"^{name}: expected at least 1, got 0$"):
            DataSetConfig(data="embedded", **{name: 0})
