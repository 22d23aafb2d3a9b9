"""Training: it learns, it stops when asked, and a broken run continues to the bits of an unbroken one.

Oracle: one unbroken run of the same config.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from needs import needs_one_order

from models import command
from models.data.batches import Batches, RawBatch
from models.data.loader import Loader
from models.data.source import open_source
from models.data.transforms import Crop
from models.errors import UserError
from models.networks.discriminators import PatchGANConfig
from models.recipes import TOKENIZERS, with_num_codes
from models.train_tokenizer import train
from models.training.checkpoint import checkpoint_steps, find_checkpoint, read_state
from models.training.run_log import read_metrics
from models.training.runs import load_config, load_tokenizer
from models.training.signals import Stopped
from models.training.timing import Stopwatch
from models.training.tokenizer_run import TokenizerLossConfig, TokenizerRun, replace_stage

ROOT = Path(__file__).parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
TIMES = {"step_seconds", "quantizer_seconds", "data_seconds", "images_per_second", "tokens_per_second"}


def flatten(value: object) -> object:
    """Tensors as bytes, so that equality means equal bits."""
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: flatten(item) for key, item in value.items()}
    return [flatten(item) for item in value] if isinstance(value, (list, tuple)) else value


def without_times(run: Path) -> list[dict[str, float]]:
    return [{key: value for key, value in line.items() if key not in TIMES} for line in read_metrics(run)]


def assert_same_run(left: Path, right: Path) -> None:
    """Same weights, optimizer state and log, bit for bit; only the times differ."""
    folders = find_checkpoint(left), find_checkpoint(right)
    assert folders[0].name == folders[1].name
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    assert flatten(read_state(folders[0])) == flatten(read_state(folders[1]))
    logs = [
        [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(run)] for run in (left, right)
    ]
    assert logs[0] == logs[1]


@pytest.fixture(scope="module")
def unbroken(tiny_config: TokenizerRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("unbroken") / "run"
    train(tiny_config, out=out, progress=False)
    return out


def command_line(config: TokenizerRun) -> list[str]:
    """Recipe and options that make the tiny config, but for its name."""
    options = {
        "hidden": 32,
        "blocks": 1,
        "num-codes": config.quantizer.num_codes,
        "anchor": config.quantizer.anchor,
        "codebook-weight": config.quantizer.codebook_weight,
        "lr": config.stage.optimizer.lr,
        "warmup-steps": config.stage.optimizer.warmup_steps,
        "data": config.data,
        "image-size": config.stage.image_size,
        "batch-size": config.stage.batch_size,
        "steps": config.stage.steps,
        "log-every": config.log_every,
        "val-every": config.val_every,
        "checkpoint-every": config.checkpoint_every,
        "workers": config.workers,
    }
    return ["patch_cvq", *(text for name, value in options.items() for text in (f"--{name}", str(value)))]


def start_process(config: TokenizerRun, out: Path, lines: int, *more: str) -> subprocess.Popen[str]:
    """``python -m models.train_tokenizer``, once its log has so many lines."""
    process = subprocess.Popen(
        [sys.executable, "-m", "models.train_tokenizer", *command_line(config), "--out", str(out), *more],
        cwd=ROOT,
        env=ONE_THREAD,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = out / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= lines):
        time.sleep(0.01)
    return process


def test_loss_falls_on_real_photographs(photo_folder: Path, tmp_path: Path) -> None:
    config = with_num_codes(TOKENIZERS["patch_lc"](), 256)
    config = dataclasses.replace(replace_stage(config, batch_size=8, steps=30), data=str(photo_folder), log_every=1)
    train(config, out=tmp_path / "run", progress=False)
    reconstruction = [line["reconstruction"] for line in read_metrics(tmp_path / "run")]
    assert len(reconstruction) == 30
    # crops differ from step to step; the mean of five tells the trend
    assert sum(reconstruction[-5:]) < 0.7 * sum(reconstruction[:5])


def test_a_perceptual_loss_is_minimised_and_part_of_the_loss(tiny_config: TokenizerRun, tmp_path: Path) -> None:
    alone = TokenizerLossConfig(l1_weight=0.0, quantizer_weight=0.0, perceptual_weight=0.5)
    train(replace_stage(tiny_config, loss=alone, steps=20), out=tmp_path / "run", progress=False)
    lines = read_metrics(tmp_path / "run")
    for line in lines:
        assert line["loss"] == pytest.approx(0.5 * line["perceptual"], rel=1e-6)
    perceptual = [line["perceptual"] for line in lines]
    assert sum(perceptual[-5:]) < 0.97 * sum(perceptual[:5])


@pytest.mark.parametrize("kind", ["hinge", "vanilla", "logistic"])
def test_the_adversarial_loss_starts_and_warms_up(kind: Any, tiny_config: TokenizerRun, tmp_path: Path) -> None:
    loss = TokenizerLossConfig(
        disc_start=3,
        disc_warmup=3,
        disc_weight=0.5,
        disc_adaptive=False,
        disc_loss=kind,
        disc=PatchGANConfig(layers=1),
    )
    train(replace_stage(tiny_config, loss=loss, steps=8), out=tmp_path / "run", progress=False)
    factors = [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    for factor, line in zip(factors, read_metrics(tmp_path / "run"), strict=True):
        expected = line["reconstruction"] + line["quantizer"] + 0.5 * factor * line.get("adversarial", 0.0)
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
        assert ("adversarial" in line) == (factor > 0)


def test_absent_weights_of_a_perceptual_loss_stop_the_training(tiny_config: TokenizerRun, tmp_path: Path) -> None:
    loss = TokenizerLossConfig(
        perceptual_weight=1.0, perceptual="lpips", perceptual_file=str(tmp_path / "absent.pth")
    )
    with pytest.raises(UserError, match=r"^vgg16: no weights at .*absent.pth; get vgg16-397923af.pth from "):
        train(replace_stage(tiny_config, loss=loss), out=tmp_path / "run", progress=False)


def test_a_run_leaves_what_it_promises(unbroken: Path, tiny_config: TokenizerRun) -> None:
    assert load_config(unbroken) == tiny_config
    assert checkpoint_steps(unbroken) == [105, 120]
    lines = read_metrics(unbroken)
    assert [line["step"] for line in lines] == list(range(1, 121))
    assert [line["step"] for line in lines if "val_psnr" in line] == [40, 80, 120]
    weight = tiny_config.quantizer
    for line in lines:
        assert 0 < line["quantizer_seconds"] < line["step_seconds"]
        assert line["images_per_second"] == pytest.approx(4 / line["step_seconds"])
        assert line["dead_codes"] == round((1 - line["utilization"]) * 64)
        assert 1 <= line["perplexity"] <= 64
        quantizer = weight.commitment_weight * line["commitment"] + weight.codebook_weight * line["codebook"]
        assert line["quantizer"] == pytest.approx(quantizer, rel=1e-5)
        assert line["loss"] == pytest.approx(line["reconstruction"] + line["quantizer"], rel=1e-5)
    assert list((unbroken / "tensorboard").iterdir())


def test_the_loaded_tokenizer_is_the_trained_one(unbroken: Path) -> None:
    config = load_config(unbroken)
    again = train(config, out=unbroken, resume=True, progress=False)  # finished: trains no further
    assert (again.step, again.metrics) == (120, read_metrics(unbroken)[-1])
    loaded = load_tokenizer(unbroken)
    images = Loader(open_source(config.data, "val"), Crop(size=32), batch_size=8).batch(1)["image"]
    with torch.no_grad():
        assert torch.equal(loaded(images).reconstruction, again.model(images).reconstruction)
    assert load_tokenizer(unbroken, step=105).quantizer.codebook.shape == (1, 64, 8)


@pytest.mark.slow
def test_killed_at_a_random_step_and_resumed_equals_unbroken(
    unbroken: Path, tiny_config: TokenizerRun, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start_process(tiny_config, out, lines=random.SystemRandom().randrange(1, 100))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    train(load_config(out), out=out, resume=True, progress=False)
    assert_same_run(out, unbroken)


def kill_and_resume(config: TokenizerRun, out: Path, lines: int) -> None:
    """One life of a training: from its newest checkpoint to SIGKILL once its log has so many lines."""
    process = start_process(config, out, lines, "--resume")
    process.kill()
    process.communicate()


@needs_one_order
def test_killed_in_an_epoch_with_workers_and_resumed_equals_unbroken(
    tiny_config: TokenizerRun, tmp_path: Path
) -> None:
    """Nine photographs and batches of four: the kill falls inside an epoch; batches come from two processes."""
    config = dataclasses.replace(replace_stage(tiny_config, steps=30), workers=2, recipe="patch_cvq")
    train(config, out=tmp_path / "whole", progress=False)
    kill_and_resume(config, tmp_path / "run", random.SystemRandom().randrange(3, 25))
    train(config, out=tmp_path / "run", resume=True, progress=False)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@needs_one_order
def test_thirty_kills_change_nothing(tiny_config: TokenizerRun, tmp_path: Path) -> None:
    config = dataclasses.replace(replace_stage(tiny_config, steps=240), workers=2, recipe="patch_cvq")
    train(config, out=tmp_path / "whole", progress=False)
    steps = random.SystemRandom().sample(range(3, 235), 30)
    for step in sorted(steps):
        kill_and_resume(config, tmp_path / "run", step)
    train(config, out=tmp_path / "run", resume=True, progress=False)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@needs_one_order
def test_sigterm_finishes_the_step_and_resumes_exactly(
    unbroken: Path, tiny_config: TokenizerRun, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start_process(tiny_config, out, lines=20)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1].splitlines()[-1]
    assert process.returncode == 128 + signal.SIGTERM
    stopped = checkpoint_steps(out)[-1]
    assert said == f"stopped by SIGTERM after step {stopped}, checkpoint written"
    assert read_metrics(out)[-1]["step"] == stopped < 120
    config = load_config(out)
    assert dataclasses.replace(config, recipe="tiny") == tiny_config
    train(config, out=out, resume=True, progress=False)
    assert_same_run(out, unbroken)


def test_ctrl_c_in_the_middle_of_a_step_stops_after_it(
    tiny_config: TokenizerRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch, handler = Batches.batch, signal.getsignal(signal.SIGINT)

    def interrupted(self: Batches, step: int) -> RawBatch:
        if step == 7:
            signal.raise_signal(signal.SIGINT)
        return batch(self, step)

    monkeypatch.setattr(Batches, "batch", interrupted)
    out = tmp_path / "run"
    code = command.run(lambda: train(tiny_config, out=out, progress=False))
    assert code == 128 + signal.SIGINT
    assert capsys.readouterr().err == "stopped by SIGINT after step 7, checkpoint written\n"
    assert checkpoint_steps(out) == [0, 7]
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.covering
@pytest.mark.parametrize(
    "quantizer",
    [
        {"codebook": "ema", "codebook_weight": 0.0, "init": "kmeans", "num_codes": 16},
        {"codebook": "frozen", "init": "matched", "feature_dim": 6},
        {"codebook": "online", "groups": 4, "code_dim": 16, "num_codes": 16},
    ],
    ids=["ema", "frozen", "groups"],
)
@pytest.mark.parametrize("disc_start", [None, 4], ids=["plain", "adversarial"])
def test_every_kind_resumes_exactly(
    tiny_config: TokenizerRun,
    tmp_path: Path,
    quantizer: dict[str, object],
    disc_start: int | None,
) -> None:
    config = dataclasses.replace(
        tiny_config,
        quantizer=dataclasses.replace(tiny_config.quantizer, **quantizer),  # type: ignore[arg-type]
        stage=dataclasses.replace(
            tiny_config.stage,
            loss=TokenizerLossConfig(l1_weight=0, l2_weight=1, disc_start=disc_start, disc=PatchGANConfig(layers=1)),
            optimizer=dataclasses.replace(tiny_config.stage.optimizer, max_grad_norm=1.0),
            steps=10,
        ),
        checkpoint_every=5,
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(config, out=whole, progress=False)
    train(config, out=broken, progress=False)
    # as if killed after the checkpoint of step 5: what is later is gone, but for lines in the log
    newest = find_checkpoint(broken, 10)
    newest.rename(newest.with_name(".step_000010.partial"))
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "loss"')
    train(config, out=broken, resume=True, progress=False)
    assert_same_run(whole, broken)
    adversarial = [line["step"] for line in read_metrics(whole) if "discriminator" in line]
    assert adversarial == ([] if disc_start is None else list(range(4, 11)))


def test_resume_without_a_run_starts_one(tiny_config: TokenizerRun, tmp_path: Path) -> None:
    config = replace_stage(tiny_config, steps=2)
    assert train(config, out=tmp_path / "run", resume=True, progress=False).step == 2


def test_a_folder_with_a_run_is_not_overwritten(unbroken: Path, tiny_config: TokenizerRun) -> None:
    with pytest.raises(UserError, match="already holds a run; continue it with --resume or choose another --out"):
        train(tiny_config, out=unbroken, progress=False)
    other = with_num_codes(tiny_config, 32)
    with pytest.raises(UserError, match=r"another config \(quantizer.num_codes 64 / 32\)"):
        train(other, out=unbroken, resume=True, progress=False)


def test_a_full_disk_is_one_line_and_exit_code_1(
    tiny_config: TokenizerRun,
    tmp_path: Path,
    small_disk: Callable[[int], AbstractContextManager[None]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    big = with_num_codes(tiny_config, 4096)
    with small_disk(100_000):
        code = command.run(lambda: train(big, out=tmp_path / "run", progress=False))
    assert code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "step_000000: disk full, checkpoint not written" in said
    assert said.count("\n") == 1


def test_a_damaged_checkpoint_is_one_line_and_exit_code_1(
    tiny_config: TokenizerRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = replace_stage(tiny_config, steps=2), tmp_path / "run"
    train(config, out=out, progress=False)
    (find_checkpoint(out) / "state.pt").write_bytes(b"")
    assert command.run(lambda: train(config, out=out, resume=True, progress=False)) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {find_checkpoint(out)}/state.pt: missing, truncated")
    assert said.count("\n") == 1


def test_a_log_line_cut_short_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + '\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1}]
    assert read_metrics(tmp_path / "nowhere") == []


def test_a_stop_carries_the_signal() -> None:
    stop = Stopped(signal.SIGTERM, 9)
    assert (stop.signum, str(stop)) == (signal.SIGTERM, "stopped by SIGTERM after step 9, checkpoint written")


class Work(torch.autograd.Function):
    """Passes ``x`` on; forward and backward put a clock forward by 2 and by 3."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, clock: list[float]) -> torch.Tensor:
        ctx.clock = clock
        clock[0] += 2
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.clock[0] += 3
        return grad, None


def test_a_stopwatch_counts_forward_and_backward_of_its_module_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("models.training.timing.time", SimpleNamespace(perf_counter=lambda: clock[0]))

    class Working(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            worked: torch.Tensor = Work.apply(x, clock)
            return worked, worked.sum()

    module, watch = Working(), Stopwatch(torch.device("cpu"))
    x = Work.apply(torch.ones(2, requires_grad=True), clock)
    with watch.watching(module):
        first, second = module(x)
        (Work.apply(first, clock).sum() + second).backward()
    assert clock == [3 * (2 + 3)]
    assert watch.take() == 2 + 3
    module(x)  # watched no more
    assert watch.take() == 0


@pytest.mark.slow
@pytest.mark.multiproc
def test_two_processes_train_together_and_resume_exactly(tiny_config: TokenizerRun, tmp_path: Path) -> None:
    config = dataclasses.replace(replace_stage(tiny_config, steps=12), checkpoint_every=6)
    options = [*command_line(config), "--disc-start", "4", "--disc.layers", "1"]

    def launch(out: Path, *more: str) -> None:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        arguments = ["-m", "models.train_tokenizer", *options, "--out", str(out), *more]
        done = subprocess.run([*launcher, *arguments], cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("held-out PSNR") == 1

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    launch(whole)
    shutil.copytree(whole, broken)
    shutil.rmtree(find_checkpoint(broken, 12))
    launch(broken, "--resume")
    assert_same_run(whole, broken)
    alone = tmp_path / "alone"
    train(load_config(whole), out=alone, progress=False)
    assert read_metrics(alone)[-1]["loss"] != read_metrics(whole)[-1]["loss"]  # the second process had crops too
