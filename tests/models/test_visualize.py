"""Pictures of what codes mean. Oracles: the prior's own loss, codes made by hand, the tokenizer's decoder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from code_folders import write_codes
from PIL import Image

from models.errors import UserError
from models.extract_codes import extract
from models.networks.code_shape import CodeShape
from models.networks.depth_head import DepthHeadConfig
from models.networks.gpt import GPTConfig
from models.priors.autoregressive import AutoregressiveConfig, AutoregressivePrior
from models.priors.grouped import GroupedConfig, GroupedPrior
from models.priors.sample_random import SampleRandom
from models.priors.sampling import SamplingConfig, sample_codes
from models.priors.teacher import top_predictions
from models.tokenizers import build_tokenizer
from models.train_prior import train
from models.train_tokenizer import train as train_tokenizer
from models.training.config import OptimizerConfig, StageConfig
from models.training.prior_run import PriorRun
from models.visualize import Visualizer, class_colours, scatter, visualize

GPT = GPTConfig(layers=1, heads=2, width=16)
SCENES = "scenes:length=8,size=32x32"


@pytest.mark.parametrize("groups", [1, 2])
def test_predictions_after_their_own_are_greedy_samples(groups: int) -> None:
    """Codes that a prior draws greedily are what it predicts when they are the truth; others it does not."""
    torch.manual_seed(0)
    shape = CodeShape(num_codes=7, grid=(3, 2), groups=groups, num_classes=2)
    prior: AutoregressivePrior | GroupedPrior
    if groups == 1:
        prior = AutoregressivePrior(AutoregressiveConfig(network=GPT), shape)
    else:
        prior = GroupedPrior(GroupedConfig(network=GPT, head=DepthHeadConfig()), shape)
    for parameter in prior.double().parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    labels = torch.tensor([0, 1])
    greedy = sample_codes(prior, SamplingConfig(temperature=0.0), SampleRandom(0, range(2)), labels)
    assert torch.equal(top_predictions(prior, greedy, labels), greedy)
    other = (greedy + 1) % 7
    assert not torch.equal(top_predictions(prior, other, labels), other)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_config: Any) -> tuple[Path, Path]:
    """A tokenizer of two groups, and a prior of its codes."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("visualize")
    quantizer = dataclasses.replace(tiny_config.quantizer, groups=2, num_codes=16)
    stage = dataclasses.replace(tiny_config.stage, steps=5)
    train_tokenizer(
        dataclasses.replace(tiny_config, quantizer=quantizer, stage=stage), out=root / "tokenizer", progress=False
    )
    extract(
        root / "tokenizer", root / "codes", data=SCENES, image_size=32, batch_size=4, shard_size=4, progress=False
    )
    prior = GroupedConfig(network=dataclasses.replace(GPT, inputs="vectors"), head=DepthHeadConfig(layers=1))
    optimizer = OptimizerConfig(lr=1e-2, schedule="constant")
    config = PriorRun(
        recipe="tiny",
        data=f"codes:{root / 'codes'}",
        prior=prior,
        stage=StageConfig(steps=2, batch_size=4, optimizer=optimizer),
    )
    train(config, out=root / "prior", progress=False)
    return root / "tokenizer", root / "prior"


def test_all_pictures(runs: tuple[Path, Path], tmp_path: Path) -> None:
    tokenizer, prior = runs
    figures = visualize(tokenizer, tmp_path, prior_run=prior, data=SCENES, images=3, noise=(0.0, 1.0))
    sizes = {path.name: Image.open(path).size for path in tmp_path.glob("*.png")}
    assert sizes == {
        "reconstruction.png": (96, 96),  # images, reconstruction, prediction
        "prefix.png": (96, 6 * 32),
        "groups.png": (96, 96),
        "codebook.png": (720, 720),
        "tokens.png": (96, 96),
    }
    assert figures["changed_by_noise"]["0.0"] == 0
    assert 0.1 < figures["changed_by_noise"]["1.0"] <= 1
    assert 0 <= figures["top1_accuracy"] <= 1
    assert 0 < figures["purity"] <= 1
    assert 0 < figures["active_codes"] <= 1


def test_without_a_prior(runs: tuple[Path, Path], tmp_path: Path) -> None:
    visualize(runs[0], tmp_path, images=2, codebook="tsne")
    assert {path.name for path in tmp_path.glob("*.png")} == {"reconstruction.png", "groups.png", "codebook.png"}


def made(tiny_config: Any, groups: int = 1) -> Visualizer:
    torch.manual_seed(0)
    quantizer = dataclasses.replace(tiny_config.quantizer, groups=groups, num_codes=8)
    tokenizer = build_tokenizer(tiny_config.network, quantizer).eval()
    return Visualizer(tokenizer, {"image": torch.rand(1, 3, 16, 16) * 2 - 1})


def test_the_first_groups_leave_the_others_zero(tiny_config: Any) -> None:
    shown = made(tiny_config, groups=2)
    first, both = shown.by_groups()
    quantized = shown.tokenizer.quantizer.decode(shown.codes)
    torch.testing.assert_close(both, shown.tokenizer.decoder(quantized))
    quantized[:, quantized.shape[1] // 2 :] = 0
    torch.testing.assert_close(first, shown.tokenizer.decoder(quantized))


def test_tokens_take_the_class_their_code_mostly_lies_on(tiny_config: Any) -> None:
    """2 x 2 tokens of 8 pixels: code 3 lies on class 1 twice and on 0 once, code 5 on void."""
    shown = made(tiny_config)
    shown.codes = torch.tensor([[[3, 3], [3, 5]]])
    labels = torch.tensor([[1, 1], [0, -1]]).repeat_interleave(8, 0).repeat_interleave(8, 1)
    labels[:3, :8] = 0  # the most frequent class of a token counts
    shown.batch["map"] = labels[None]
    classes, purity = shown.token_classes(2)
    assert classes.tolist() == [[[1, 1], [1, -1]]]
    assert purity == pytest.approx(2 / 3)
    assert class_colours(2)[classes[0, 1, 1]].tolist() == [0, 0, 0]


def test_active_and_dead_codes_have_their_colours() -> None:
    codes = np.array([[0.0, 0.0], [1.0, 1.0]])
    vectors = np.array([[-1.0, -1.0], [2.0, 2.0], [-1.0, 2.0]])
    colours = {tuple(pixel) for pixel in scatter(codes, vectors, np.array([True, False])).reshape(-1, 3)}
    assert colours == {(255, 255, 255), (31, 119, 180), (214, 39, 40), (205, 205, 205)}


def test_what_cannot_be_shown_is_one_line(runs: tuple[Path, Path], tmp_path: Path) -> None:
    tokenizer, prior = runs
    with pytest.raises(UserError, match=r"image_size: expected a grid of \(4, 4\) codes for the prior, got \(2, 2\)"):
        visualize(tokenizer, tmp_path, prior_run=prior, data=SCENES, image_size=16)
    with pytest.raises(UserError, match="data: expected images, got clips"):
        visualize(tokenizer, tmp_path, data="scenes:length=4,size=32x32,frames=2")
    with pytest.raises(UserError, match="expected the run of a prior"):
        visualize(tokenizer, tmp_path, prior_run=tokenizer, data=SCENES)


def test_a_prior_of_another_tokenizer_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    codes = write_codes(tmp_path / "codes", shape=(4, 4, 2), groups=2, num_codes=16)
    prior = GroupedConfig(network=GPT, head=DepthHeadConfig(layers=1))
    config = PriorRun(
        recipe="tiny", data=f"codes:{codes}", prior=prior, stage=StageConfig(steps=1, batch_size=2), val_every=1
    )
    train(config, out=tmp_path / "prior", progress=False)
    with pytest.raises(UserError, match="codes of another tokenizer"):
        visualize(runs[0], tmp_path / "out", prior_run=tmp_path / "prior", data=SCENES)
