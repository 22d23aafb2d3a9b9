"""Every kind of prior on the engine: exact resume, what it has to beat, shards over processes, what goes wrong.

Oracles: one unbroken run, one process, counted frequencies, and the best that a Gaussian per cell can do.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from code_folders import write_codes, write_latents
from processes import free_port, run_processes, torchrun_variables
from safetensors.numpy import load_file
from torch import nn

from models.config_json import parse
from models.errors import UserError
from models.metrics.code_entropy import NeighbourCounts
from models.networks.depth_head import DepthHeadConfig
from models.networks.dit import DiTConfig
from models.networks.flow_head import FlowHeadConfig
from models.networks.gpt import GPTConfig
from models.networks.ldm_unet import UNetConfig
from models.priors.autoregressive import AutoregressiveConfig
from models.priors.concept import ConceptConfig
from models.priors.diffusion import DDPM, DDPMConfig, DiffusionConfig, FlowConfig
from models.priors.grouped import GroupedConfig
from models.priors.masked import MaskedConfig
from models.priors.video import VideoConfig
from models.recipes import PRIORS
from models.train_prior import train
from models.training.checkpoint import checkpoint_steps, find_checkpoint, read_state, read_weights
from models.training.config import OptimizerConfig, StageConfig
from models.training.prior_data import describe_data
from models.training.prior_run import CodeInfo, PriorConfig, PriorRun, build_prior
from models.training.run_log import read_metrics
from models.training.runs import load_prior, load_prior_config

GPT = GPTConfig(layers=1, heads=2, width=16)
DIT = DiTConfig(layers=1, width=16, heads=2, patch_size=1, learned_sigma=False)
UNET = UNetConfig(
    base_channels=32, multipliers=(1, 2), res_blocks=1, attention_levels=(1,), head_dim=16, context_dim=8
)
PLAIN = DDPMConfig(steps=50, learned_variance=False)
BIDIRECTIONAL = dataclasses.replace(GPT, style="mingpt", positions="learned", causal=False)
CONTINUOUS = dataclasses.replace(GPT, inputs="continuous", positions="learned")

# kind of prior: its config, and the folder of codes it learns
PRIOR_KINDS: dict[str, tuple[PriorConfig, str]] = {
    "autoregressive": (AutoregressiveConfig(network=GPT, pkeep=0.9, label_smoothing=0.1), "codes"),
    "masked": (MaskedConfig(network=BIDIRECTIONAL), "codes"),
    "grouped": (GroupedConfig(network=dataclasses.replace(GPT, inputs="vectors"), head=DepthHeadConfig()), "groups"),
    "parallel": (GroupedConfig(network=GPT, head=DepthHeadConfig(structure="parallel")), "groups"),
    "video": (VideoConfig(network=GPT), "clips"),
    "unet": (DiffusionConfig(network=UNET, process=PLAIN), "latents"),
    "dit": (DiffusionConfig(network=dataclasses.replace(DIT, learned_sigma=True), process=DDPMConfig()), "latents"),
    "sit": (DiffusionConfig(network=DIT, process=FlowConfig()), "latents"),
    "concept": (ConceptConfig(network=CONTINUOUS, head=FlowHeadConfig(layers=1, width=16)), "latents"),
    "sequence": (ConceptConfig(network=CONTINUOUS, head=FlowHeadConfig(layers=1, width=16)), "tokens"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("codes")
    return {
        "codes": f"codes:{write_codes(root / 'codes')}",
        "groups": f"codes:{write_codes(root / 'groups', shape=(4, 3, 2), groups=2)}",
        "clips": f"codes:{write_codes(root / 'clips', shape=(3, 2, 3))}",
        "latents": f"latents:{write_latents(root / 'latents')}",
        "tokens": f"latents:{write_latents(root / 'tokens', shape=(5, 2))}",
    }


def prior_run(kind: str, folders: dict[str, str], *, steps: int = 4, lr: float = 3e-3, **changes: Any) -> PriorRun:
    prior, data = PRIOR_KINDS[kind]
    optimizer = OptimizerConfig(kind="adamw", lr=lr, schedule="constant", max_grad_norm=1.0)
    stage = StageConfig(steps=steps, batch_size=4, optimizer=optimizer)
    settings: dict[str, Any] = {"log_every": 1, "val_every": 2, "checkpoint_every": 2, "val_samples": 4}
    return PriorRun(recipe="tiny", **{**settings, "data": folders[data], "prior": prior, "stage": stage, **changes})


def bits(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.numpy().tobytes()
    if isinstance(state, dict):
        return {key: bits(value) for key, value in state.items()}
    return [bits(value) for value in state] if isinstance(state, list | tuple) else state


def content(out: Path) -> Any:
    folder = find_checkpoint(out)
    lines = [{key: value for key, value in line.items() if "second" not in key} for line in read_metrics(out)]
    return folder.name, bits(read_weights(folder)), bits(read_state(folder)), lines


@pytest.mark.parametrize("kind", PRIOR_KINDS)
def test_it_trains_and_resumes_to_the_same_bits(kind: str, folders: dict[str, str], tmp_path: Path) -> None:
    config = prior_run(kind, folders)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = train(config, out=whole, progress=False)
    assert math.isfinite(result.metrics["val_loss"])
    assert result.metrics["tokens_per_second"] > result.metrics["samples_per_second"]
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "step_000004")
    assert checkpoint_steps(broken) == [2]
    train(config, out=broken, resume=True, progress=False)
    assert content(broken) == content(whole)

    prior = load_prior(whole)
    assert not prior.training
    assert bits(dict(prior.state_dict())) == bits(dict(result.model.state_dict()))
    begun = read_weights(find_checkpoint(whole, 2))
    assert any(not torch.equal(begun[name], tensor) for name, tensor in prior.state_dict().items())


def learned(kind: str, folders: dict[str, str], out: Path, steps: int = 100) -> dict[str, float]:
    prior, _ = PRIOR_KINDS[kind]
    wide = {"width": 32, "dropout": 0.0, "embedding_dropout": 0.0}
    network = dataclasses.replace(GPT, **wide)
    changes: dict[str, Any] = {}
    if isinstance(prior, AutoregressiveConfig):
        changes = {"network": network, "pkeep": 1.0, "label_smoothing": 0.0}
    elif isinstance(prior, MaskedConfig):
        changes = {"network": dataclasses.replace(prior.network, **wide), "label_smoothing": 0.0}
    elif isinstance(prior, GroupedConfig):
        changes = {"network": dataclasses.replace(network, inputs=prior.network.inputs)}
    elif isinstance(prior, DiffusionConfig):
        changes = {"network": dataclasses.replace(prior.network, width=32)}
    config = prior_run(kind, folders, lr=1e-2)
    config = dataclasses.replace(
        config,
        prior=dataclasses.replace(prior, **changes),
        stage=dataclasses.replace(config.stage, steps=steps, batch_size=16),
        val_every=steps,
        checkpoint_every=steps,
        val_samples=64,
    )
    return train(config, out=out, progress=False).metrics


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("larger")
    counts = (600, 100)
    return {
        "codes": f"codes:{write_codes(root / 'codes', counts=counts)}",
        "groups": f"codes:{write_codes(root / 'groups', shape=(4, 3, 2), groups=2, counts=counts)}",
        "clips": f"codes:{write_codes(root / 'clips', shape=(3, 2, 3), counts=counts)}",
        "latents": f"latents:{write_latents(root / 'latents', counts=counts)}",
    }


@pytest.mark.parametrize("kind", ["autoregressive", "masked", "grouped", "video"])
def test_it_beats_counting(kind: str, larger: dict[str, str], tmp_path: Path) -> None:
    metrics = learned(kind, larger, tmp_path / "run")
    assert metrics["val_unigram_ratio"] < 0.9
    assert metrics["val_bigram_ratio"] < 0.9


def test_a_flow_beats_the_best_gaussian_of_each_cell(larger: dict[str, str], tmp_path: Path) -> None:
    """Of data of variance 1, which tell nothing of one another, the velocity at time t keeps 1 / (t^2 + (1-t)^2)."""
    assert learned("sit", larger, tmp_path / "run")["val_loss"] < math.pi / 2


def test_ddpm_beats_the_best_gaussian_of_each_cell(larger: dict[str, str], tmp_path: Path) -> None:
    """Of the same data, the variance of the noise that is left is the share of the signal."""
    metrics = learned("dit", larger, tmp_path / "run")
    assert metrics["val_mse"] < DDPM(DDPMConfig()).kept.mean().item()


class TestNeighbourCounts:
    CODES = np.array([[0, 1, 2, 1], [0, 1, 1, 3]])

    def test_probabilities_are_those_of_the_formula(self) -> None:
        counts = NeighbourCounts(self.CODES, 6)
        # 8 codes of 4 kinds: a third of the weight is uniform
        assert counts.unigram == pytest.approx([(n + 4 / 6) / 12 for n in (2, 4, 1, 1, 0, 0)])
        held_out = np.array([[0, 1, 3, 5]])
        first = counts.unigram[0]
        after_0 = (2 + 1 * counts.unigram[1]) / 3  # seen twice, one successor
        after_1 = (1 + 3 * counts.unigram[3]) / 6  # seen three times, successors 1, 2, 3
        after_3 = counts.unigram[5]  # never seen as a context
        expected = -np.log([first, after_0, after_1, after_3]).mean()
        assert counts.bigram_nll(held_out) == pytest.approx(expected)
        assert counts.unigram_nll(held_out) == pytest.approx(-np.log(counts.unigram[held_out]).mean())

    def test_probabilities_of_a_context_sum_to_one(self) -> None:
        counts = NeighbourCounts(self.CODES, 6)
        assert counts.unigram.sum() == pytest.approx(1)
        for before in range(6):
            nats = [
                2 * counts.bigram_nll(np.array([[before, after]])) + np.log(counts.unigram[before])
                for after in range(6)
            ]
            assert np.exp(-np.array(nats)).sum() == pytest.approx(1)


def _still(folders: dict[str, str], steps: int, batch_size: int, parallel: str) -> PriorRun:
    """Without random numbers in a step, so that processes may divide it."""
    network = dataclasses.replace(GPT, layers=2, dropout=0.0, embedding_dropout=0.0)
    config = prior_run("autoregressive", folders, parallel=parallel)
    prior = AutoregressiveConfig(network=network, class_dropout=0.0)
    stage = dataclasses.replace(config.stage, steps=steps, batch_size=batch_size, ema_decay=0.9, accumulate=2)
    return dataclasses.replace(config, prior=prior, stage=stage)


def _worker(rank: int, port: int, folders: dict[str, str], out: str) -> None:
    os.environ |= torchrun_variables(rank, 2, port)
    torch.set_num_threads(1)
    config = _still(folders, 6, 4, "fsdp2")
    train(config, out=Path(out) / "whole", progress=False)
    if rank == 0:
        shutil.copytree(Path(out) / "whole", Path(out) / "broken")
        shutil.rmtree(Path(out) / "broken" / "checkpoints" / "step_000006")
    torch.distributed.barrier()
    train(config, out=Path(out) / "broken", resume=True, progress=False)


@pytest.mark.slow
def test_shards_on_two_processes_train_to_the_losses_of_one(folders: dict[str, str], tmp_path: Path) -> None:
    train(_still(folders, 6, 8, "ddp"), out=tmp_path / "one", progress=False)
    run_processes(_worker, args=(free_port(), folders, str(tmp_path)), nprocs=2)
    expected = read_metrics(tmp_path / "one")
    for name in ("whole", "broken"):
        lines = read_metrics(tmp_path / name)
        for key in ("val_loss", "val_nll", "grad_norm"):
            got, wanted = ([line[key] for line in log if key in line] for log in (lines, expected))
            assert got == pytest.approx(wanted, rel=1e-4), key
        folder = find_checkpoint(tmp_path / name)
        assert folder.name == "step_000006"
        for mean in (False, True):
            tensors = read_weights(find_checkpoint(tmp_path / "one"), mean=mean)
            for key, tensor in read_weights(folder, mean=mean).items():
                torch.testing.assert_close(tensor, tensors[key], rtol=1e-3, atol=1e-4)
    assert content(tmp_path / "broken") == content(tmp_path / "whole")


def test_a_loaded_prior_has_the_vectors_of_its_codes(folders: dict[str, str], tmp_path: Path) -> None:
    train(prior_run("grouped", folders, val_every=4), out=tmp_path / "run", progress=False)
    prior = load_prior(tmp_path / "run")
    written = load_file(Path(folders["groups"].removeprefix("codes:")) / "codebook.safetensors")["codebook"]
    assert torch.equal(prior.gpt.embed.codes, torch.from_numpy(written))


@pytest.mark.parametrize("name", PRIORS)
def test_recipes_are_read_back(name: str) -> None:
    config = PRIORS[name]()
    assert config.recipe == name
    assert parse(PriorRun, json.loads(json.dumps(dataclasses.asdict(config))), "config") == config


@pytest.mark.parametrize(
    ("name", "millions"),
    [("seq_ar_base", 171.6), ("llamagen_b", 110.9), ("llamagen_xxl", 1411.0), ("dit_xl", 675.4), ("sit_xl", 675.4)],
)
def test_a_paper_recipe_is_as_large_as_the_paper_says(name: str, millions: float) -> None:
    config = PRIORS[name]()
    num_codes = 1024 if name.startswith("seq") else 16384
    latents = config.data.startswith("latents:")
    shape = (4, 32, 32) if latents else (16, 16)
    labels = () if name.startswith("seq") else tuple(map(str, range(1000)))
    info = CodeInfo(
        tokenizer="",
        num_codes=num_codes,
        groups=1,
        code_dim=8,
        shape=shape,
        labels=labels,
    )
    with torch.device("meta"):
        prior: nn.Module = build_prior(dataclasses.replace(config, codes=info))
    assert sum(parameter.numel() for parameter in prior.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def shard(folder: Path, split: str = "train") -> Path:
    return folder / split / "shard_00000.safetensors"


def truncate(folder: Path) -> None:
    shard(folder).write_bytes(shard(folder).read_bytes()[:-9])


def tell(folder: Path, split: str | None = None, **changes: Any) -> None:
    for side in (split,) if split else ("train", "val"):
        path = folder / side / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def settings(**changes: Any) -> dict[str, Any]:
    return {"settings": {"num_codes": 8, "groups": 1, "code_dim": 2, **changes}}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"train/shard_00000.safetensors: truncated or not a shard of codes"),
        (lambda f: shard(f, "val").unlink(), r"val is not finished, 1 of 1 shards are missing"),
        (
            lambda f: tell(f, num_codes=5, **settings(num_codes=5)),
            r"row \d+: expected codes from 0 to 4, got \d to \d",
        ),
        (lambda f: tell(f, labels=["a"]), r"row \d+: expected a class from 0 to 0, got \d"),
        (lambda f: tell(f, num_codes=5), r"train: expected one number of codes, got 5 and 8"),
        (lambda f: tell(f, settings={}), r"train: not made by models.extract_codes \(settings lack 'num_codes'\)"),
        (lambda f: tell(f, "val", tokenizer="x"), r"val: codes of another tokenizer or shape than those in .*train"),
        (lambda f: tell(f, shape=[2, 3]), r"expected codes of shape \[2, 2, 3\], got \[2, 4, 3\]"),
        (lambda f: shutil.rmtree(f), "without manifest.json"),
    ],
)
def test_damaged_codes_are_one_line(damage: Any, message: str, tmp_path: Path) -> None:
    folder = write_codes(tmp_path / "codes")
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        train(prior_run("autoregressive", {"codes": f"codes:{folder}"}), out=tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("autoregressive", "latents", "data: expected 'codes:DIR' for a prior of the kind 'autoregressive'"),
        ("sit", "codes", "data: expected 'latents:DIR' for a prior of the kind 'diffusion'"),
        ("autoregressive", "groups", r"groups: expected 1 \(several need the grouped prior\), got 2"),
        ("grouped", "codes", "groups: expected at least 2, got 1"),
        ("video", "codes", "frames: expected at least 2, context and next, got 1"),
    ],
)
def test_a_prior_and_data_that_do_not_belong_together(
    kind: str, data: str, message: str, folders: dict[str, str], tmp_path: Path
) -> None:
    config = dataclasses.replace(prior_run(kind, folders), data=folders[data])
    with pytest.raises((UserError, ValueError), match=message):
        train(config, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_codes_of_another_tokenizer_are_refused(folders: dict[str, str], tmp_path: Path) -> None:
    out, codes = tmp_path / "run", tmp_path / "codes"
    shutil.copytree(folders["codes"].removeprefix("codes:"), codes)
    config = prior_run("autoregressive", {"codes": f"codes:{codes}"})
    train(config, out=out, progress=False)
    tell(codes, tokenizer="other")
    with pytest.raises(UserError, match=r"codes of another tokenizer: .* those of made, these are of other"):
        train(config, out=out, resume=True, progress=False)
    going_on = dataclasses.replace(config, stage=dataclasses.replace(config.stage, start=str(out)))
    with pytest.raises(UserError, match=r"codes of another tokenizer: .* those of made, these are of other"):
        train(going_on, out=tmp_path / "next", progress=False)
    tell(codes, tokenizer="made")
    train(going_on, out=tmp_path / "next", progress=False)


def test_the_scale_gives_latents_unit_spread(folders: dict[str, str]) -> None:
    """The latents are +4 and -4."""
    described = describe_data(prior_run("sit", folders))
    assert described.latent_scale == pytest.approx(0.25, rel=0.05)
    assert describe_data(prior_run("sit", folders, latent_scale=1.0)).latent_scale == 1.0


def test_without_classes_a_prior_is_unconditional(folders: dict[str, str], tmp_path: Path) -> None:
    train(prior_run("autoregressive", folders, conditional=False), out=tmp_path / "run", progress=False)
    assert load_prior_config(tmp_path / "run").shape.num_classes == 0
