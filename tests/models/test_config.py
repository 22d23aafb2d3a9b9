"""Configs as JSON, and codebook initialisation. Oracle: equality, and k-means done by hand."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.config_json import differing_fields, parse
from models.errors import UserError
from models.networks.discriminators import PatchGANConfig
from models.networks.patch import PatchConfig
from models.pretrained.efficientnet_lite0 import EfficientNetLite0
from models.recipes import TOKENIZERS, with_num_codes
from models.tokenizers import build_tokenizer
from models.tokenizers.config import QuantizerConfig
from models.tokenizers.features import codebook_features, fit_codebook, whiten
from models.train_tokenizer import train
from models.training.config import OptimizerConfig
from models.training.tokenizer_run import TokenizerRun, TokenizerStage, replace_stage, upgraded

CONFIG = TOKENIZERS["patch_fc"]()


def read(content: object) -> TokenizerRun:
    config = parse(TokenizerRun, json.loads(json.dumps(content)), "config")
    assert isinstance(config, TokenizerRun)
    return config


@pytest.mark.parametrize("name", TOKENIZERS)
def test_recipes_survive_json(name: str) -> None:
    config = TOKENIZERS[name]()
    assert config.recipe == name
    assert read(dataclasses.asdict(config)) == config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", "many", "config.seed: expected <class 'int'>, got 'many'"),
        ("seed", -1, "seed: expected a number from 0 to"),
        ("stage", {"steps": 0}, "steps: expected at least 1, got 0"),
        ("stage", {"optimizer": {"lr": 0.0}}, "lr: expected more than 0, got 0.0"),
        ("mixed_precision", "fp8", "config.mixed_precision: expected .*, got 'fp8'"),
        ("network", {"kind": "mlp"}, "config.network: expected one of"),
        ("network", {"kind": "patch", "hidden": "x"}, "config.network.hidden: expected <class 'int'>, got 'x'"),
        ("then", [{"steps": 1}, {"batch_size": 3, "accumulate": 2}], "accumulate: expected a divisor"),
        ("surprise", 1, r"config: expected none but the fields of TokenizerRun, got \['surprise'\]"),
    ],
)
def test_a_config_that_is_none_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read(dataclasses.asdict(CONFIG) | {field: value})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_field_from_after_a_run_takes_its_default() -> None:
    content = dataclasses.asdict(CONFIG)
    del content["stage"]["ema_decay"], content["track"]
    assert read(content) == CONFIG
    del content["recipe"]
    with pytest.raises(ValueError, match=r"config: expected the fields \['recipe'\], got none"):
        read(content)


@pytest.mark.parametrize(("codebook", "init"), [("learned", "matched"), ("ema", "matched"), ("frozen", "kmeans")])
def test_an_init_that_does_not_go_with_the_codebook_is_refused(codebook: Any, init: Any) -> None:
    with pytest.raises(ValueError, match=rf"init: expected .* for codebook='{codebook}', got '{init}'"):
        QuantizerConfig(codebook=codebook, init=init)


def test_differing_fields_are_named_with_both_values() -> None:
    assert differing_fields(CONFIG, CONFIG) == []
    other = with_num_codes(replace_stage(CONFIG, steps=7), 64)
    assert differing_fields(CONFIG, other) == ["quantizer.num_codes 4096 / 64", "stage.steps 600 / 7"]
    longer = dataclasses.replace(CONFIG, then=(CONFIG.stage,))
    assert [line.split()[0] for line in differing_fields(CONFIG, longer)] == ["then"]
    changed = dataclasses.replace(CONFIG, then=(dataclasses.replace(CONFIG.stage, batch_size=1),))
    assert differing_fields(longer, changed) == ["then.0.batch_size 32 / 1"]


def test_steps_belong_to_stages() -> None:
    config = dataclasses.replace(replace_stage(CONFIG, steps=3), then=(TokenizerStage(steps=2),))
    assert config.steps == 5
    assert [config.stage_at(step) for step in range(1, 6)] == [0, 0, 0, 1, 1]
    assert [config.start_of(number) for number in range(2)] == [0, 3]
    with pytest.raises(ValueError, match="step: expected at most 5, got 6"):
        config.stage_at(6)


def test_a_stage_takes_over_what_it_does_not_change() -> None:
    other = dataclasses.replace(CONFIG.quantizer, num_codes=7)
    stages = (TokenizerStage(quantizer=other), TokenizerStage())
    config = dataclasses.replace(CONFIG, then=stages)
    assert [config.parts(number)[1].num_codes for number in range(3)] == [4096, 7, 7]
    assert {config.parts(number)[0] for number in range(3)} == {CONFIG.network}


RATES = {
    "cosine": lambda done: 0.2 + 1.8 * (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 2 - 1.8 * done,
    "exponential": lambda done: 2 * 0.1**done,
    "constant": lambda _: 2.0,
}


@pytest.mark.parametrize("schedule", RATES)
@pytest.mark.parametrize("start", [0, 6])
def test_learning_rate_climbs_stays_and_falls(schedule: Any, start: int) -> None:
    config = OptimizerConfig(lr=2.0, warmup_steps=4, schedule=schedule, schedule_start=start, final_lr=0.2)
    rates = [config.rate(step, 12) for step in range(1, 13)]
    level = max(4, start)
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4:level] == [2.0] * (level - 4)
    for step in range(level + 1, 13):
        assert rates[step - 1] == pytest.approx(RATES[schedule]((step - 1 - level) / (12 - level)))


def test_an_exponential_schedule_needs_somewhere_to_go() -> None:
    with pytest.raises(ValueError, match=r"final_lr: expected more than 0 with schedule='exponential', got 0.0"):
        OptimizerConfig(schedule="exponential")


def test_a_run_from_before_stages_reads_as_one_of_today() -> None:
    old = {
        "recipe": "patch_fc",
        "network": dataclasses.asdict(CONFIG.network),
        "quantizer": dataclasses.asdict(CONFIG.quantizer),
        "loss": {"pixel": "l2", "quantizer_weight": 0.5, "disc_start": 7, "disc_weight": 0.2, "disc_layers": 1},
        "optimizer": {"lr": 0.5, "betas": [0.5, 0.9], "eps": 1e-7, "warmup_steps": 3, "schedule": "constant"},
        "data": "embedded",
        "image_size": 32,
        "batch_size": 4,
        "flip": False,
        "steps": 9,
        "seed": 5,
        "log_every": 1,
        "val_every": 2,
        "checkpoint_every": 3,
        "mixed_precision": "no",
    }
    config = read(upgraded(old))
    stage = config.stage
    assert (config.recipe, config.seed, config.checkpoint_every, config.steps) == ("patch_fc", 5, 3, 9)
    assert (stage.image_size, stage.batch_size, stage.flip) == (32, 4, False)
    assert (stage.loss.l1_weight, stage.loss.l2_weight, stage.loss.quantizer_weight) == (0, 1, 0.5)
    assert (stage.loss.disc_start, stage.loss.disc) == (7, PatchGANConfig(layers=1))
    assert stage.optimizer == OptimizerConfig(lr=0.5, betas=(0.5, 0.9), eps=1e-7, warmup_steps=3, schedule="constant")
    assert read(upgraded(dataclasses.asdict(CONFIG))) == CONFIG


def test_whitened_features_are_uncorrelated_and_of_unit_variance() -> None:
    x = torch.randn(500, 10) @ torch.randn(10, 10)
    white = whiten(x, 4).double()
    assert white.shape == (500, 4)
    covariance = (white - white.mean(dim=0)).mT @ (white - white.mean(dim=0)) / 500
    torch.testing.assert_close(covariance, torch.eye(4, dtype=torch.float64), atol=1e-5, rtol=0)
    # what is left out varies less than what is kept: four directions hold the largest eigenvalues
    centered = x.double() - x.double().mean(dim=0)
    kept = torch.linalg.lstsq(white, centered).solution
    explained = (white @ kept).square().sum() / 500
    largest = torch.linalg.eigvalsh(centered.mT @ centered / 500)[-4:].sum()
    assert explained.item() == pytest.approx(largest.item(), rel=1e-5)


def frozen(**changes: Any) -> QuantizerConfig:
    return QuantizerConfig(codebook="frozen", init="matched", num_codes=64, feature_dim=6, **changes)


def noise(size: int, count: int = 4) -> Iterator[dict[str, torch.Tensor]]:  # without end, two classes in turn
    for seed in itertools.count():
        pixels = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        yield {"image": pixels, "label": torch.arange(count) % 2}


def images() -> Iterator[torch.Tensor]:  # each [4, 3, 32, 32], without end
    return (batch["image"] for batch in noise(32))


def made(quantizer: QuantizerConfig) -> torch.Tensor | None:
    return codebook_features(quantizer, noise, patch_size=8, image_size=32, seed=0)


def test_a_matched_codebook_has_the_mean_and_spread_of_the_encoder() -> None:
    quantizer = frozen()
    features = made(quantizer)
    assert features is not None
    assert features.shape == (64, 6)
    tokenizer = build_tokenizer(PatchConfig(hidden=32, blocks=1), quantizer, features)
    fit_codebook(tokenizer, quantizer, images(), seed=0)
    with torch.no_grad():
        latents = tokenizer.latents(next(images())).transpose(0, 1).flatten(1).double()  # [D, N]
    codes = tokenizer.quantizer.codebook[0].double()  # [K, D]
    # each code is a float32 sum of F + 1 = 7 products, in a scale and a shift that were rounded too
    budget = 16 * torch.finfo(torch.float32).eps * max(codes.abs().max().item(), latents.abs().max().item())
    torch.testing.assert_close(codes.mean(dim=0), latents.mean(dim=1), rtol=0, atol=budget)
    torch.testing.assert_close(codes.std(dim=0), latents.std(dim=1), rtol=0, atol=budget)


def test_features_can_come_from_a_file(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)
    file = tmp_path / "features.npy"
    np.save(file, features)
    quantizer = frozen(features=str(file))
    loaded = made(quantizer)
    assert loaded is not None
    assert np.array_equal(loaded.numpy(), features)
    np.save(file, features[:10])
    with pytest.raises(UserError, match=r"features: expected \[64, F\] in .*, got \[10, 5\]"):
        made(quantizer)
    np.save(file, np.array([{"an": "object"}]), allow_pickle=True)
    with pytest.raises(UserError, match=r"features: .* is not a readable .npy file"):
        made(quantizer)
    np.save(file, np.full((64, 5), "text"))
    with pytest.raises(UserError, match=r"features: expected numbers in .*, got str128"):
        made(quantizer)


@pytest.mark.parametrize("pick", ["kmeans", "kmeans_per_class", "sample"])
def test_features_of_a_pretrained_network(pick: Any, efficientnet: EfficientNetLite0) -> None:
    quantizer = QuantizerConfig(
        codebook="frozen",
        num_codes=4,
        features="efficientnet_lite0",
        features_layer="expand3",
        features_size=64,
        features_pick=pick,
    )
    features = made(quantizer)
    assert features is not None
    batch = next(noise(32))
    scaled = F.interpolate(batch["image"], (64, 64), mode="bicubic", align_corners=False, antialias=True)
    layer = efficientnet.features(scaled, ["expand3"])["expand3"]
    pooled = F.adaptive_avg_pool2d(layer, 4).flatten(2).transpose(1, 2)  # [4, 16, F]
    rows = pooled.flatten(0, 1).double()  # 64 are what 4 codes take
    assert features.shape == (4, rows.shape[1])
    if pick == "sample":
        assert (torch.cdist(features.double(), rows).amin(1) < 1e-4).all()
    elif pick == "kmeans":
        error = torch.cdist(rows, features.double()).amin(1).square().sum()
        assert error < (rows - rows.mean(0)).square().sum()
    else:  # k-means of either class: the mean of a class is that of its centres, weighted by what they stand for
        for number in range(2):
            own = pooled[batch["label"] == number].flatten(0, 1).double()
            centres = features[2 * number : 2 * number + 2].double()
            nearest = torch.cdist(own, centres).argmin(1)
            mean = torch.stack([own[nearest == i].mean(0) for i in range(2)])
            torch.testing.assert_close(centres, mean, rtol=1e-3, atol=1e-3)


def test_classes_must_be_there_and_divide_the_codes() -> None:
    quantizer = frozen(features_pick="kmeans_per_class")
    with pytest.raises(UserError, match="num_codes: expected a multiple of 2 classes, got 63"):
        made(dataclasses.replace(quantizer, num_codes=63))

    def unlabelled(size: int) -> Iterator[dict[str, torch.Tensor]]:
        return ({"image": batch["image"]} for batch in noise(size))

    with pytest.raises(UserError, match="features_pick: expected 'kmeans' or 'sample' for data without classes"):
        codebook_features(quantizer, unlabelled, patch_size=8, image_size=32, seed=0)


def test_random_features_are_as_published() -> None:
    features = made(QuantizerConfig(codebook="frozen", num_codes=50, features="random", feature_dim=40))
    assert features is not None
    assert features.shape == (50, 40)
    assert 0.019 < features.abs().max() <= 0.02


def test_kmeans_init_starts_every_code_at_a_cluster_of_encoder_outputs() -> None:
    quantizer = QuantizerConfig(codebook="online", init="kmeans", num_codes=8)
    tokenizer = build_tokenizer(PatchConfig(hidden=32, blocks=1), quantizer)
    fit_codebook(tokenizer, quantizer, images(), seed=0)
    with torch.no_grad():
        # 128 vectors are wanted for 8 codes, a batch has 64
        vectors = torch.cat([tokenizer.latents(batch) for batch in itertools.islice(images(), 2)])  # [B, D, h, w]
    rows = vectors.movedim(1, -1).reshape(-1, 8).double()
    codes = tokenizer.quantizer.codebook[0].double()
    nearest = torch.cdist(rows, codes).argmin(dim=1)
    spread = (rows - rows.mean(dim=0)).square().sum()
    assert set(nearest.tolist()) == set(range(8))
    assert (rows - codes[nearest]).square().sum() < 0.9 * spread


def test_more_codes_than_tokens_is_refused(tiny_config: TokenizerRun, tmp_path: Path) -> None:
    config = with_num_codes(replace_stage(tiny_config, steps=1), 1000)
    with pytest.raises(UserError, match="num_codes: expected at most the 64 tokens that training sees, got 1000"):
        train(config, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
