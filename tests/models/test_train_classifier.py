"""Classifiers of codes on the engine. Oracles: one unbroken run, the most frequent class, transformers' ViT-MAE."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from code_folders import CLASSES, write_codes
from torch.nn import functional as F

from models.config_json import parse
from models.data.source import open_source
from models.errors import UserError
from models.networks.code_shape import CodeShape
from models.networks.token_classifier import TokenClassifier
from models.networks.vit import ViT, ViTConfig, load_mae
from models.pretrained.mae import in_names_of_mae, mae_weights
from models.recipes import CLASSIFIERS
from models.train_classifier import train
from models.training.checkpoint import checkpoint_steps, find_checkpoint, read_state, read_weights
from models.training.classifier_run import ClassifierRun
from models.training.config import OptimizerConfig, StageConfig
from models.training.optimizers import build_optimizer
from models.training.runs import load_classifier, load_prior

TINY = ViTConfig(grid=4, layers=2, width=32, heads=2)
MAE = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_codes(tmp_path_factory.mktemp("codes") / "codes", shape=(4, 4), counts=(300, 90))


@pytest.fixture(scope="module")
def mae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mae") / "vit_mae"
    model = transformers.ViTMAEModel(transformers.ViTMAEConfig(**MAE, image_size=32, patch_size=8))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    model.save_pretrained(folder)
    return folder


def run(folder: Path, *, steps: int = 4, **changes: Any) -> ClassifierRun:
    optimizer = OptimizerConfig(kind="adamw", lr=3e-3, weight_decay=0.05, layer_decay=0.7, warmup_steps=2)
    stage = StageConfig(steps=steps, batch_size=8, optimizer=optimizer)
    settings: dict[str, Any] = {"log_every": 1, "val_every": 2, "checkpoint_every": 2, "val_samples": 8}
    made = {"network": TINY, "stage": stage, "data": f"codes:{folder}"}
    return ClassifierRun(recipe="tiny", **settings | made | changes)


def bits(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.numpy().tobytes()
    if isinstance(state, dict):
        return {key: bits(value) for key, value in state.items()}
    return [bits(value) for value in state] if isinstance(state, list | tuple) else state


def test_it_resumes_to_the_same_bits(codes: Path, mae: Path, tmp_path: Path) -> None:
    config, whole, broken = run(codes, mae=str(mae)), tmp_path / "whole", tmp_path / "broken"
    result = train(config, out=whole, progress=False)
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "step_000004")
    assert checkpoint_steps(broken) == [2]
    train(config, out=broken, resume=True, progress=False)
    ends = [find_checkpoint(out, 4) for out in (whole, broken)]
    assert len({str(bits([read_weights(end), read_state(end)])) for end in ends}) == 1
    classifier = load_classifier(whole)
    assert bits(dict(classifier.state_dict())) == bits(dict(result.model.state_dict()))
    with pytest.raises(UserError, match="expected the run of a prior, got that of a classifier"):
        load_prior(whole)


@pytest.mark.parametrize("groups", [1, 2])
def test_it_beats_the_most_frequent_class(groups: int, codes: Path, tmp_path: Path) -> None:
    if groups > 1:
        codes = write_codes(tmp_path / "codes", shape=(4, 4, groups), groups=groups, counts=(300, 90))
    config = run(codes, steps=60, val_every=60, checkpoint_every=60)
    metrics = train(config, out=tmp_path / "run", progress=False).metrics
    source = open_source(config.data, "val")
    labels = [source.read(index).label for index in range(len(source))]
    most = max(labels.count(label) for label in range(len(CLASSES))) / len(labels)
    assert metrics["held_out_samples"] == 90
    assert metrics["held_out_most_frequent"] == pytest.approx(most)
    assert metrics["held_out_top1"] > (1 + most) / 2
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["top1"] == metrics["held_out_top1"]


def test_the_vectors_it_reads_are_centred_and_of_unit_spread() -> None:
    shape = CodeShape(num_codes=50, grid=(4, 4), groups=2, code_dim=6, num_classes=3)
    classifier = TokenClassifier(TINY, shape)
    vectors = 1e-3 * torch.randn(2, 50, 3) + 7
    classifier.set_codes(vectors)
    table = classifier.table.codes
    torch.testing.assert_close(table.mean((0, 1)), torch.zeros(3), atol=2.0**-20, rtol=0)
    assert table.square().mean().item() == pytest.approx(1, rel=2.0**-20)
    indices = torch.randint(50, (2, 4, 4, 2))
    expected = torch.cat([table[group][indices[..., group]] for group in range(2)], dim=-1)
    assert torch.equal(classifier.table(indices), expected)
    torch.testing.assert_close(classifier(indices), classifier.vit(expected.movedim(-1, 1)))
    with pytest.raises(ValueError, match="codes: expected vectors that differ, got one"):
        classifier.set_codes(torch.ones(2, 50, 3))


def test_weights_of_mae_are_those_of_transformers(mae: Path) -> None:
    vit = ViT(dataclasses.replace(TINY, patch_size=8, drop_path=0.0), channels=3, num_classes=5).eval()
    weights = mae_weights(str(mae))
    load_mae(vit, weights, patches=True)
    model = transformers.ViTMAEModel.from_pretrained(mae, mask_ratio=0.0).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
        tokens = torch.cat([vit.cls_token.expand(2, -1, -1), vit.patch_embed(images)], dim=1) + vit.pos_embed
        for block in vit.blocks:
            tokens = block(tokens)
        found = F.layer_norm(tokens, (32,), weights["norm.weight"], weights["norm.bias"])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_both_spellings_of_transformers_are_read(mae: Path) -> None:
    """That of version 4 and that of version 5; the installed one is either."""
    later = {
        r"^encoder\.layer\.": "layers.",
        r"\.attention\.attention\.(\w)\w+\.": r".attention.\1_proj.",
        r"\.attention\.output\.dense\.": ".attention.o_proj.",
        r"\.intermediate\.dense\.": ".mlp.fc1.",
        r"\.output\.dense\.": ".mlp.fc2.",
    }
    block = "encoder.layer.1"
    names = [f"{block}.attention.attention.{part}.weight" for part in ("value", "query", "key")]
    names += [f"{block}.{part}.dense.bias" for part in ("attention.output", "intermediate", "output")]
    names += [f"{block}.layernorm_before.weight", "embeddings.cls_token", "layernorm.bias"]
    old = {name: torch.full((2, 2), float(number)) for number, name in enumerate(names)}
    new = {}
    for name, tensor in old.items():
        for pattern, spelling in later.items():
            name = re.sub(pattern, spelling, name)
        new[name] = tensor
    assert not old.keys() & new.keys() - {"embeddings.cls_token", "layernorm.bias"}
    read = in_names_of_mae(old)
    assert bits(read) == bits(in_names_of_mae(new))
    assert read["blocks.1.attn.qkv.weight"][:, 0].tolist() == [1, 1, 2, 2, 0, 0]
    kept = {"attn.proj.bias": 3, "mlp.fc1.bias": 4, "mlp.fc2.bias": 5, "norm1.weight": 6}
    assert all(read[f"blocks.1.{name}"][0, 0] == number for name, number in kept.items())
    assert {"cls_token", "norm.bias"} < read.keys()


def test_rates_fall_from_the_head_down() -> None:
    classifier = TokenClassifier(TINY, CodeShape(num_codes=4, grid=(4, 4), code_dim=2, num_classes=3))
    optimizer = build_optimizer(classifier, OptimizerConfig(kind="adamw", weight_decay=0.1, layer_decay=0.5))
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            found[id(parameter)] = group["scale"], group["weight_decay"]
    expected = {
        "vit.head.weight": (1, 0.1),
        "vit.fc_norm.weight": (1, 0),
        "vit.blocks.1.attn.qkv.weight": (1 / 2, 0.1),
        "vit.blocks.0.mlp.fc1.bias": (1 / 4, 0),
        "vit.patch_embed.proj.weight": (1 / 8, 0.1),
        "vit.pos_embed": (1 / 8, 0),
        "vit.cls_token": (1 / 8, 0),
    }
    parameters = dict(classifier.named_parameters())
    assert len(found) == len(parameters)
    assert {name: found[id(parameters[name])] for name in expected} == expected
    with pytest.raises(UserError, match="layer_decay: expected 1 for a network that does not count its layers"):
        build_optimizer(torch.nn.Linear(2, 2), OptimizerConfig(layer_decay=0.5))


def test_a_step_moves_layers_by_their_rates(codes: Path, tmp_path: Path) -> None:
    """Adam's first step is the rate itself, whatever the gradient."""
    config = run(codes, steps=1)
    plain = OptimizerConfig(kind="adam", lr=1e-3, eps=1e-30, layer_decay=0.5, schedule="constant")
    config = dataclasses.replace(config, stage=dataclasses.replace(config.stage, optimizer=plain))
    train(config, out=tmp_path / "run", progress=False)
    before, after = (read_weights(find_checkpoint(tmp_path / "run", step)) for step in (0, 1))
    for name, layers in (("vit.head.bias", 0), ("vit.blocks.1.mlp.fc2.bias", 1), ("vit.patch_embed.proj.bias", 3)):
        moved = (after[name] - before[name]).abs().max().item()
        assert moved == pytest.approx(1e-3 * 0.5**layers, rel=1e-3), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": dataclasses.replace(TINY, grid=8)}, "codes: expected a grid of 8 x 8, got 4 x 4"),
        ({"data": "embedded"}, "data: expected 'codes:DIR', got 'embedded'"),
        ({"mae": "/nowhere"}, "vit_mae: no weights at /nowhere"),
        ({"label_smoothing": 1.0}, "label_smoothing: expected a share below 1, got 1.0"),
    ],
)
def test_what_does_not_fit_is_one_line(changes: dict[str, Any], message: str, codes: Path, tmp_path: Path) -> None:
    with pytest.raises((UserError, ValueError), match=message) as caught:
        train(run(codes, **changes), out=tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_data_that_do_not_fit_are_one_line(codes: Path, mae: Path, tmp_path: Path) -> None:
    def refused(config: ClassifierRun, message: str) -> None:
        with pytest.raises((UserError, ValueError), match=message) as caught:
            train(config, out=tmp_path / "run", progress=False)
        assert "\n" not in str(caught.value)

    refused(run(write_codes(tmp_path / "none", shape=(4, 4), labels=())), "expected codes of images with classes")
    clips = write_codes(tmp_path / "clips", shape=(3, 4, 4))
    refused(run(clips), "codes: expected a grid of 4 x 4, got 3 x 4 x 4")
    refused(run(codes, mae=str(mae), network=dataclasses.replace(TINY, width=16)), "mae: .* does not fit the network")
    refused(run(codes, mae=str(mae), network=dataclasses.replace(TINY, layers=3)), "mae: .* does not fit the network")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_recipes_are_read_back(name: str) -> None:
    config = CLASSIFIERS[name]()
    assert config.recipe == name
    assert parse(ClassifierRun, json.loads(json.dumps(dataclasses.asdict(config))), "config") == config
