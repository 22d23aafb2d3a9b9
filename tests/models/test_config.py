"""Configs as JSON, and codebook initialisation. Oracle: equality, and k-means done by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.config_json import differing_fields
from models.data.photos import load_photos
from models.errors import UserError
from models.recipes import tokenizers as recipes
from models.tokenizers import build_tokenizer
from models.tokenizers.config import QuantizerConfig
from models.tokenizers.features import codebook_features, fit_codebook, whiten
from models.training.config import TrainConfig
from models.training.trainer import learning_rate, training_crops


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_survive_json(name: str) -> None:
    config = recipes.RECIPES[name]()
    assert config.recipe == name
    assert TrainConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", "many", "config.steps: expected <class 'int'>, got 'many'"),
        ("steps", 0, "steps: expected at least 1, got 0"),
        ("mixed_precision", "fp8", "config.mixed_precision: expected .*, got 'fp8'"),
        ("network", {"kind": "mlp"}, "config.network: expected one of"),
        ("surprise", 1, "config: expected the fields"),
    ],
)
def test_a_config_that_is_none_is_refused(field: str, value: object, message: str) -> None:
    content = json.loads(recipes.patch_fc().to_json()) | {field: value}
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_json(json.dumps(content))


@pytest.mark.parametrize(("codebook", "init"), [("learned", "matched"), ("ema", "matched"), ("frozen", "kmeans")])
def test_an_init_that_does_not_go_with_the_codebook_is_refused(codebook: Any, init: Any) -> None:
    with pytest.raises(ValueError, match=rf"init: expected .* for codebook='{codebook}', got '{init}'"):
        QuantizerConfig(codebook=codebook, init=init)


def test_differing_fields_are_named_with_both_values() -> None:
    config = recipes.patch_fc()
    assert differing_fields(config, config) == []
    other = recipes.with_num_codes(dataclasses.replace(config, steps=7), 64)
    assert differing_fields(config, other) == ["quantizer.num_codes 4096 / 64", "steps 600 / 7"]


def test_learning_rate_climbs_then_falls_to_zero() -> None:
    config = recipes.patch_fc().optimizer
    config = dataclasses.replace(config, lr=2.0, warmup_steps=4)
    rates = [learning_rate(config, step, 12) for step in range(1, 13)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[8] == pytest.approx(1.0)  # half way down the cosine
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert learning_rate(dataclasses.replace(config, schedule="constant"), 12, 12) == 2.0


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


def frozen(config: TrainConfig, **changes: object) -> TrainConfig:
    quantizer = dataclasses.replace(config.quantizer, codebook="frozen", init="matched", feature_dim=6, **changes)
    return dataclasses.replace(config, quantizer=quantizer)


def test_a_matched_codebook_has_the_mean_and_spread_of_the_encoder(tiny_config: TrainConfig) -> None:
    config = frozen(tiny_config)
    photos = load_photos(config.data)
    features = codebook_features(config, photos)
    assert features is not None
    assert features.shape == (64, 6)
    tokenizer = build_tokenizer(config.network, config.quantizer, features)
    crops = training_crops(config, photos, 0)
    fit_codebook(tokenizer, config, crops)
    with torch.no_grad():
        latents = tokenizer.latents(crops.batch(0)).transpose(0, 1).flatten(1).double()  # [D, N]
    codes = tokenizer.quantizer.codebook[0].double()  # [K, D]
    # each code is a float32 sum of F + 1 = 7 products, in a scale and a shift that were rounded too
    budget = 16 * torch.finfo(torch.float32).eps * max(codes.abs().max().item(), latents.abs().max().item())
    torch.testing.assert_close(codes.mean(dim=0), latents.mean(dim=1), rtol=0, atol=budget)
    torch.testing.assert_close(codes.std(dim=0), latents.std(dim=1), rtol=0, atol=budget)


def test_features_can_come_from_a_file(tiny_config: TrainConfig, tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)
    file = tmp_path / "features.npy"
    np.save(file, features)
    loaded = codebook_features(frozen(tiny_config, features=str(file)), ())
    assert loaded is not None
    assert np.array_equal(loaded.numpy(), features)
    np.save(file, features[:10])
    with pytest.raises(UserError, match=r"features: expected \[64, F\] in .*, got \[10, 5\]"):
        codebook_features(frozen(tiny_config, features=str(file)), ())
    np.save(file, np.array([{"an": "object"}]), allow_pickle=True)
    with pytest.raises(UserError, match=r"features: .* is not a readable .npy file"):
        codebook_features(frozen(tiny_config, features=str(file)), ())


def test_kmeans_init_starts_every_code_at_a_cluster_of_encoder_outputs(tiny_config: TrainConfig) -> None:
    quantizer = dataclasses.replace(tiny_config.quantizer, init="kmeans", num_codes=8)
    config = dataclasses.replace(tiny_config, quantizer=quantizer)
    photos = load_photos(config.data)
    tokenizer = build_tokenizer(config.network, quantizer)
    crops = training_crops(config, photos, 0)
    fit_codebook(tokenizer, config, crops)
    with torch.no_grad():
        # 128 vectors are wanted for 8 codes, a batch has 64
        vectors = torch.cat([tokenizer.latents(crops.batch(step)) for step in range(2)])  # [B, D, h, w]
    rows = vectors.movedim(1, -1).reshape(-1, 8).double()
    codes = tokenizer.quantizer.codebook[0].double()
    nearest = torch.cdist(rows, codes).argmin(dim=1)
    spread = (rows - rows.mean(dim=0)).square().sum()
    assert set(nearest.tolist()) == set(range(8))
    assert (rows - codes[nearest]).square().sum() < 0.5 * spread


def test_more_codes_than_tokens_is_said(tiny_config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config = dataclasses.replace(tiny_config, steps=1)
    config = recipes.with_num_codes(config, 1000)
    tokenizer = build_tokenizer(config.network, config.quantizer)
    fit_codebook(tokenizer, config, training_crops(config, load_photos(config.data), 0))
    assert capsys.readouterr().err == "num_codes: 1000 codes, but training sees only 64 tokens\n"
