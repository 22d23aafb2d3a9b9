"""From images to codes, a prior, and images again: extraction, sampling, and what goes wrong.

Oracle: the tokenizer itself; samples drawn one at a time, in one go, or after an interruption.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

from models import command, sample
from models.data.codes import CodeSource, read_manifest
from models.data.pixels import to_tensor
from models.data.source import open_source
from models.data.transforms import Crop
from models.errors import UserError
from models.extract_codes import extract
from models.networks.concept_dit import ConceptDiTConfig
from models.networks.dit import DiTConfig
from models.networks.flow_head import FlowHeadConfig
from models.networks.gpt import GPTConfig
from models.networks.vit import ConceptEncoderConfig
from models.priors.autoregressive import AutoregressiveConfig
from models.priors.concept import ConceptConfig
from models.priors.diffusion import DDPMConfig, DiffusionConfig, FlowConfig
from models.priors.diffusion_sampling import DiffusionSamplingConfig
from models.priors.draw import sampling_config
from models.priors.masked import MaskedConfig
from models.priors.video import VideoConfig
from models.sample import Sampler, draw_samples, picture_grid
from models.tokenizers.config import QuantizerConfig
from models.tokenizers.latent_space import PatchSpaceConfig
from models.train_prior import train
from models.train_tokenizer import train as train_tokenizer
from models.training.concept_run import ConceptRun, ConceptStage
from models.training.config import OptimizerConfig, StageConfig
from models.training.prior_run import PriorConfig, PriorRun
from models.training.runs import load_codec, load_prior, load_prior_config, load_tokenizer

GPT = GPTConfig(layers=1, heads=2, width=16)


@pytest.fixture(scope="module")
def tokenizer_run(tmp_path_factory: pytest.TempPathFactory, tiny_config: Any) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("tokenizer") / "run"
    stage = dataclasses.replace(tiny_config.stage, steps=10)
    train_tokenizer(dataclasses.replace(tiny_config, stage=stage), out=out, progress=False)
    return out


def small(run: Path, out: Path, **options: Any) -> Path:
    settings: dict[str, Any] = {"batch_size": 4, "shard_size": 4, "image_size": 32, "progress": False}
    extract(run, out, **{**settings, **options})
    return out


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory, tokenizer_run: Path) -> Path:
    return small(tokenizer_run, tmp_path_factory.mktemp("codes") / "codes", data="scenes:length=20,size=32x32")


def train_small(prior: PriorConfig, data: str, out: Path) -> Path:
    stage = StageConfig(steps=2, batch_size=4, optimizer=OptimizerConfig(lr=1e-2, schedule="constant"))
    config = PriorRun(recipe="tiny", data=data, prior=prior, stage=stage, val_every=2, checkpoint_every=2)
    train(config, out=out, progress=False)
    return out


@pytest.fixture(scope="module")
def prior_run(tmp_path_factory: pytest.TempPathFactory, codes: Path) -> Path:
    out = tmp_path_factory.mktemp("prior") / "run"
    return train_small(AutoregressiveConfig(network=GPT), f"codes:{codes}", out)


def sampler(prior: Path, tokenizer: Path, **options: Any) -> Sampler:
    """In float64, so that the shapes of products decide no code."""
    loaded = load_prior(prior).double()
    codec = load_codec(tokenizer)
    codec.tokenizer.double()
    sampling = sampling_config(loaded, **options.pop("sampling", {}))
    return Sampler(load_prior_config(prior), loaded, codec, sampling, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_codes_are_those_of_the_middles(codes: Path, tokenizer_run: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_run)
    source = open_source("scenes:length=20,size=32x32", "train")
    stored = CodeSource(codes, "train", "codes")
    assert len(stored) == 20
    assert stored.labels == tuple(source.labels)
    assert read_manifest(codes / "train").dtype == "uint8"
    middle = Crop(size=32, resize=32, place="center")
    for index in (0, 5, 19):
        sample = source.read(index)
        arrays = middle(sample, np.random.default_rng(0))
        expected = tokenizer.encode(to_tensor(arrays["image"].transpose(1, 2, 0)))[0]
        assert np.array_equal(stored.read(index).image[0], expected.numpy())
        assert stored.read(index).label == sample.label


@pytest.mark.parametrize(("views", "count"), [("mirror", 2), ("ten", 20)])
def test_views_of_training_images(views: str, count: int, tokenizer_run: Path, tmp_path: Path) -> None:
    data = "scenes:length=4,size=40x40"
    out = small(tokenizer_run, tmp_path / "codes", data=data, views=views, ratios=(1.05, 1.1))
    assert read_manifest(out / "train").views == count
    assert read_manifest(out / "val").views == 1
    first = CodeSource(out, "train", "codes").read(0).image
    assert any(not np.array_equal(first[0], view) for view in first[1:])


def test_latents_are_what_the_encoder_gives(tokenizer_run: Path, tmp_path: Path) -> None:
    out = small(tokenizer_run, tmp_path / "latents", data="scenes:length=4,size=32x32", kind="latents")
    stored = CodeSource(out, "train", "latents").read(2).image[0]
    sample = open_source("scenes:length=4,size=32x32", "train").read(2)
    with torch.no_grad():
        expected = load_tokenizer(tokenizer_run).latents(to_tensor(sample.image))[0]
    np.testing.assert_allclose(stored, expected.numpy(), rtol=1e-3, atol=1e-4)


def test_random_crops_do_not_depend_on_shards(tokenizer_run: Path, tmp_path: Path) -> None:
    one, other = (
        small(tokenizer_run, tmp_path / str(size), data="embedded", samples=10, shard_size=size) for size in (4, 12)
    )
    sources = [CodeSource(out, "train", "codes") for out in (one, other)]
    assert [len(source) for source in sources] == [10, 10]
    for index in range(10):
        assert np.array_equal(*(source.read(index).image for source in sources))


def test_interrupted_it_makes_only_what_is_missing(tokenizer_run: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "codes", {"data": "scenes:length=10,size=32x32"}
    small(tokenizer_run, out, **options)
    shards = sorted((out / "train").glob("shard_*"))
    assert len(shards) == 3
    before = [shard.read_bytes() for shard in shards]
    shards[1].unlink()
    kept = shards[0].stat().st_mtime_ns
    assert extract(tokenizer_run, out, batch_size=4, shard_size=4, image_size=32, progress=False, **options) == {
        "train": 1,
        "val": 0,
    }
    assert [shard.read_bytes() for shard in shards] == before
    assert shards[0].stat().st_mtime_ns == kept
    with pytest.raises(UserError, match="made with another source"):
        small(tokenizer_run, out, data="scenes:length=11,size=32x32")


def test_samples_do_not_depend_on_the_batch(prior_run: Path, tokenizer_run: Path, tmp_path: Path) -> None:
    for size in (1, 3, 7):
        draw_samples(sampler(prior_run, tokenizer_run), tmp_path / str(size), 7, batch_size=size, progress=False)
    one = contents(tmp_path / "1" / "images")
    assert len(one) == 7
    assert one == contents(tmp_path / "3" / "images") == contents(tmp_path / "7" / "images")
    assert len(set(one.values())) > 1


def test_interrupted_it_draws_the_same_samples(prior_run: Path, tokenizer_run: Path, tmp_path: Path) -> None:
    drawn = sampler(prior_run, tokenizer_run, classes=(1, 0), sampling={"top_k": 20, "guidance": 1.5})
    draw_samples(drawn, tmp_path, 5, batch_size=2, progress=False)
    before = contents(tmp_path)
    (tmp_path / "images" / "000003.png").unlink()
    assert draw_samples(drawn, tmp_path, 5, batch_size=2, progress=False)["samples"] == 2
    assert contents(tmp_path) == before
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (5, 32, 32, 3)
        assert arrays["arr_1"].tolist() == [1, 0, 1, 0, 1]
        third = np.asarray(Image.open(tmp_path / "images" / "000003.png"))
        assert np.array_equal(arrays["arr_0"][3], third)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "grid.png"))[32:64, :32], third)


def test_without_a_cache_the_codes_are_the_same(prior_run: Path, tokenizer_run: Path) -> None:
    codes = [sampler(prior_run, tokenizer_run, cache=cache).codes(range(3)) for cache in (True, False)]
    assert torch.equal(*codes)


def test_a_larger_grid_goes_through_a_window(prior_run: Path, tokenizer_run: Path, tmp_path: Path) -> None:
    draw_samples(sampler(prior_run, tokenizer_run, grid=(4, 6)), tmp_path, 1, progress=False)
    assert Image.open(tmp_path / "images" / "000000.png").size == (48, 32)


@pytest.mark.parametrize("kind", ["masked", "flow"])
def test_other_priors_become_images(kind: str, tokenizer_run: Path, codes: Path, tmp_path: Path) -> None:
    prior: PriorConfig = MaskedConfig(network=dataclasses.replace(GPT, causal=False))
    data, options = f"codes:{codes}", {"steps": 3, "choice_temperature": 1.0}
    if kind == "flow":
        folder = small(tokenizer_run, tmp_path / "l", data="scenes:length=8,size=32x32", kind="latents")
        network = DiTConfig(layers=1, width=16, heads=2, patch_size=1, learned_sigma=False)
        prior, data = DiffusionConfig(network=network, process=FlowConfig()), f"latents:{folder}"
        options = {"steps": 3, "method": "heun"}
    run = train_small(prior, data, tmp_path / "run")
    for size in (1, 4):
        draw_samples(
            sampler(run, tokenizer_run, sampling=options), tmp_path / str(size), 4, batch_size=size, progress=False
        )
    assert contents(tmp_path / "1") == contents(tmp_path / "4")
    assert Image.open(tmp_path / "1" / "images" / "000003.png").size == (32, 32)


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_a_video_prior_leaves_videos(suffix: str, tokenizer_run: Path, tmp_path: Path) -> None:
    data = "scenes:length=6,size=32x32,frames=3"
    folder = small(tokenizer_run, tmp_path / "clips", data=data)
    run = train_small(VideoConfig(network=GPT), f"codes:{folder}", tmp_path / "run")
    drawn = sampler(run, tokenizer_run, new_frames=2)
    draw_samples(drawn, tmp_path / "out", 2, batch_size=2, video=suffix, progress=False)  # type: ignore[arg-type]
    path = tmp_path / "out" / "videos" / f"000001.{suffix}"
    if suffix == "gif":
        assert Image.open(path).n_frames == 4
    else:
        import av

        with av.open(str(path)) as container:
            assert len(list(container.decode(video=0))) == 4
    context = CodeSource(folder, "val", "codes").read(0).image[0][:2]
    assert np.array_equal(drawn.codes([0])[0, :2].numpy(), context)


def test_pictures_in_a_grid() -> None:
    images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 4, 3), np.uint8)
    grid = picture_grid(images)
    assert grid.shape == (4, 8, 3)
    assert grid[::2, ::4, 0].tolist() == [[0, 1], [2, 0]]


def line_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert command.run(lambda: tyro.cli(sample.main, args=arguments)) == 1
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    return error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "0", "99"], r"classes: expected classes from 0 to \d+, got 99"),
        (["--steps", "5"], r"steps: expected none with a prior of the kind 'autoregressive'"),
        (["--temperature", "-1"], r"temperature: expected at least 0"),
        (["--count", "0"], r"count: expected at least 1, got 0"),
        (["--grid", "1", "2"], r"grid: expected at least the prior's \(4, 4\), got \(1, 2\)"),
    ],
)
def test_bad_options_are_one_line(
    options: list[str],
    message: str,
    prior_run: Path,
    tokenizer_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(prior_run), str(tokenizer_run), "--out", str(tmp_path / "out"), *options]
    assert re.search(message, line_of(arguments, capsys))


def test_another_tokenizer_is_refused(
    prior_run: Path,
    tokenizer_run: Path,
    tiny_config: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, quantizer in (
        ("seed", tiny_config.quantizer),
        ("codes", dataclasses.replace(tiny_config.quantizer, num_codes=32)),
    ):
        stage = dataclasses.replace(tiny_config.stage, steps=1)
        config = dataclasses.replace(tiny_config, seed=5, stage=stage, quantizer=quantizer)
        train_tokenizer(config, out=tmp_path / name, progress=False)
        arguments = [str(prior_run), str(tmp_path / name), "--out", str(tmp_path / "out")]
        assert "codes of another tokenizer" in line_of(arguments, capsys)
    arguments = [str(tokenizer_run), str(tokenizer_run), "--out", str(tmp_path / "out")]
    assert "expected the run of a prior, got that of a tokenizer" in line_of(arguments, capsys)


@pytest.mark.slow
def test_two_processes_give_the_samples_of_one(prior_run: Path, tokenizer_run: Path, tmp_path: Path) -> None:
    arguments = [str(prior_run), str(tokenizer_run), "--count", "5", "--batch-size", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, launcher in (("one", []), ("two", torchrun)):
        command_line = [sys.executable, *launcher, "-m", "models.sample", *arguments, "--out", str(tmp_path / name)]
        subprocess.run(command_line, check=True, env=environment, cwd=Path(__file__).parents[2], capture_output=True)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 6


@pytest.mark.parametrize("quantized", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_concept_tokens_become_images(quantized: bool, tmp_path: Path) -> None:
    """The first two of three tokens: indices by an autoregressive prior, vectors by a concept prior."""
    torch.set_num_threads(1)
    data = "scenes:length=8,size=16x16"
    dit = DiTConfig(layers=1, width=16, heads=2, patch_size=1)
    tokenizer = ConceptRun(
        recipe="tiny",
        data=data,
        encoder=ConceptEncoderConfig(image_size=16, patch_size=8, tokens=3, layers=1, width=16, heads=2),
        decoder=ConceptDiTConfig(dit=dit),
        token_dim=4,
        quantizer=QuantizerConfig(codebook="learned", num_codes=8, code_dim=4) if quantized else None,
        space=PatchSpaceConfig(patch_size=4, channels=6),
        process=DDPMConfig(),
        sampling=DiffusionSamplingConfig(method="ddim", steps=2),
        use_samples=4,
        stage=ConceptStage(steps=1, batch_size=2),
        val_samples=2,
    )
    train_tokenizer(tokenizer, out=tmp_path / "tok", progress=False)
    kind = "codes" if quantized else "latents"
    folder = small(tmp_path / "tok", tmp_path / "codes", kind=kind, image_size=16, tokens=2)
    assert read_manifest(folder / "train").shape == ((1, 2) if quantized else (4, 1, 2))
    with pytest.raises(UserError, match="tokens: expected 1 to 3, got 4"):
        small(tmp_path / "tok", tmp_path / "other", kind=kind, image_size=16, tokens=4)
    prior: PriorConfig = AutoregressiveConfig(network=GPT)
    if not quantized:
        with pytest.raises(ValueError, match="kind: expected 'latents' of a tokenizer without a quantizer"):
            small(tmp_path / "tok", tmp_path / "other", image_size=16)
        network = dataclasses.replace(GPT, inputs="continuous", positions="learned")
        prior = ConceptConfig(network=network, head=FlowHeadConfig(layers=1, width=16))
    run = train_small(prior, f"{kind}:{folder}", tmp_path / "run")
    config, codec = load_prior_config(run), load_codec(tmp_path / "tok")
    options = {} if quantized else {"steps": 3}
    drawn = Sampler(config, load_prior(run), codec, sampling_config(load_prior(run), **options))
    draw_samples(drawn, tmp_path / "out", 3, batch_size=2, progress=False)
    images = contents(tmp_path / "out" / "images")
    assert len(set(images.values())) == 3
    (tmp_path / "out" / "images" / "000001.png").unlink()
    draw_samples(drawn, tmp_path / "out", 3, batch_size=2, progress=False)
    assert contents(tmp_path / "out" / "images") == images
