"""Rows of pictures: what they are of. Oracles: the tokenizer's own encoder and decoder, label maps made by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from models import pipelines, systems
from models.extract_codes import extract
from models.networks.gpt import GPTConfig
from models.priors.video import VideoConfig
from models.report import showcase
from models.report.showcase import class_rows, prefix_rows, telling, video_rows
from models.report.systems import draw_rows
from models.train_prior import train as train_prior
from models.train_tokenizer import train as train_tokenizer
from models.training.config import OptimizerConfig, StageConfig
from models.training.prior_run import PriorRun
from models.training.runs import load_tokenizer

SCENES = "scenes:length=32,size=32x32"
CLIPS = "scenes:length=8,size=32x32,frames="


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_config: Any) -> Path:
    """Tokenizers with one group and with two, and a video prior of two frames."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("showcase")
    for name, groups in (("sgc_pocket", 1), ("mgvq_pocket", 2)):
        quantizer = dataclasses.replace(tiny_config.quantizer, groups=groups, num_codes=16)
        stage = dataclasses.replace(tiny_config.stage, steps=3, image_size=32)
        config = dataclasses.replace(tiny_config, recipe=name, quantizer=quantizer, stage=stage, data=SCENES)
        train_tokenizer(config, out=root / name, progress=False)
    extract(
        root / "sgc_pocket",
        root / "clips",
        data=f"{CLIPS}2",
        batch_size=4,
        shard_size=4,
        image_size=32,
        progress=False,
    )
    prior = VideoConfig(network=GPTConfig(layers=1, heads=2, width=16))
    stage = StageConfig(steps=2, batch_size=4, optimizer=OptimizerConfig(lr=1e-2, schedule="constant"))
    config = PriorRun(
        recipe="video_pocket", data=f"codes:{root / 'clips'}", prior=prior, stage=stage, conditional=False
    )
    train_prior(config, out=root / "video_pocket", progress=False)
    return root


def test_prefixes_end_in_all_groups(runs: Path) -> None:
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    rows = prefix_rows(runs / "mgvq_pocket", images)
    assert [label.split("\n")[0] for label, _ in rows] == ["held-out crops", "1 of 2 groups", "2 of 2 groups"]
    tokenizer = load_tokenizer(runs / "mgvq_pocket")
    with torch.no_grad():
        codes = tokenizer.encode(images)
        torch.testing.assert_close(rows[2][1], tokenizer.decode(codes))
        codes[..., 1:] = -1
        torch.testing.assert_close(rows[1][1], tokenizer.decode(codes))
    assert not torch.equal(rows[1][1], rows[2][1])


def test_classes_are_those_of_the_maps(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes, the left and the right half; codes that know the half get all of its tokens right."""
    maps = torch.zeros(2, 32, 32, dtype=torch.long)
    maps[:, :, 16:] = showcase.CLASSES.index("sky")
    batch = {"image": torch.zeros(2, 3, 32, 32), "map": maps}
    monkeypatch.setattr(showcase, "_scenes", lambda config, split, count: [batch])

    class Halves:
        downsample, quantizer = 8, load_tokenizer(runs / "sgc_pocket").quantizer

        def encode(self, images: torch.Tensor) -> torch.Tensor:
            return torch.tensor([3, 3, 5, 5]).expand(len(images), 4, 4)

    monkeypatch.setattr(showcase, "load_tokenizer", lambda folder: Halves())
    rows, legend = class_rows(runs / "sgc_pocket", 2)
    assert [name for name, _ in legend] == ["road", "sky"]
    assert "100% the same\n(50% by guess)" in rows[3][0]
    for _, picture in rows[1:]:
        assert torch.equal(picture, rows[1][1])
    assert not torch.equal(rows[1][1][..., 0], rows[1][1][..., -1])


def test_a_video_goes_on_after_the_frames_it_gets(runs: Path) -> None:
    rows = video_rows(runs / "sgc_pocket", runs / "video_pocket", (0,), f"{CLIPS}4")
    assert [label.split("\n")[0] for label, _ in rows] == ["held-out", "their codes", "prior", "frame 1 kept"]
    truth, codes, prior, kept = (frames for _, frames in rows)
    assert truth.shape == codes.shape == prior.shape == kept.shape == (4, 3, 32, 32)
    tokenizer = load_tokenizer(runs / "sgc_pocket")
    with torch.no_grad():
        torch.testing.assert_close(codes, tokenizer.decode(tokenizer.encode(truth)))
    assert torch.equal(prior[0], codes[0])
    assert all(torch.equal(frame, codes[0]) for frame in kept)


def test_the_most_telling_images() -> None:
    images = torch.zeros(4, 3, 8, 8)
    images[1, :, ::2], images[3, :, 0] = 1.0, 1.0
    assert torch.equal(telling(images, 2), images[[1, 3]])


def test_commands_draw_them(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(showcase, "_LEARNT", 32)
    monkeypatch.setattr(showcase, "_JUDGED", 3)
    monkeypatch.setattr(showcase, "_BATCH", 3)
    monkeypatch.setattr(systems, "CROPS", 8)
    systems.draw_details(("mgvq_pocket", "sgc_pocket"), runs)
    monkeypatch.setitem(
        pipelines.PIPELINES, "video_pocket", pipelines.CLIPS._replace(tokenizer="sgc_pocket", data=f"{CLIPS}4")
    )
    monkeypatch.setattr(pipelines, "_STREETS", (0,))
    pipelines.draw_video(runs)
    for name in ("prefixes.webp", "classes.webp", "video.webp"):
        with Image.open(runs / name) as picture:
            assert picture.width > 500
    with pytest.raises(ValueError, match="zip"):
        draw_rows([("a", torch.zeros(2, 3, 4, 4))], tmp_path / "a.png", titles=["one of two"])
