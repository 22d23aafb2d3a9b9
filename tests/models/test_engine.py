"""The engine on a task of microseconds: stages, players, accumulation, running means, exact resume, what goes wrong.

Oracle: the same arithmetic written out with a bare optimizer, and one unbroken run.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from torch import nn

from models.config_json import Hidden
from models.data.embedded import EmbeddedSource
from models.data.sample import Source
from models.data.transforms import Crop
from models.errors import UserError
from models.training import runs
from models.training.checkpoint import checkpoint_steps, find_checkpoint, read_state, read_weights
from models.training.config import OptimizerConfig, RunConfig, StageConfig
from models.training.engine import BuildTask, TrainResult, train_run
from models.training.optimizers import WeightMean, build_optimizer
from models.training.run_log import read_metrics
from models.training.step import NotFiniteLossError, freeze
from models.training.task import Batch, Look, Loss, Transform

OPTIMIZER = OptimizerConfig(lr=0.01, schedule="constant")


@dataclass(frozen=True, kw_only=True)
class ToyRun(RunConfig):
    """Stages of a toy."""

    kind: Hidden[Literal["toy"]] = "toy"
    stage: StageConfig = StageConfig()
    then: tuple[StageConfig, ...] = ()

    @property
    def stages(self) -> tuple[StageConfig, ...]:
        return (self.stage, *self.then)


class Toy(nn.Module):
    """Two numbers per channel; dropout, so that training draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.drop = nn.Linear(3, 3), nn.Linear(3, 3), nn.Dropout(0.2)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, 3] -> [B, 3]
        if self.training:
            self.seen.add_(1)
        return self.second(self.drop(torch.tanh(self.first(x))))


class ToyTask:
    """A model against a critic that takes its turn from the second step on."""

    unit = "images"
    tokens = 1
    timed = None

    def __init__(self, config: ToyRun, number: int, weights: Mapping[str, torch.Tensor] | None) -> None:
        self.stage = config.stages[number]
        self.model = Toy()
        if weights is not None:
            self.model.load_state_dict(weights)
        self.players: dict[str, nn.Module] = {"model": self.model, "critic": nn.Linear(3, 1)}

    def data(self, split: str) -> tuple[Source, Transform]:
        return EmbeddedSource("train" if split == "train" else "val"), Crop(size=8)

    def loss(self, player: str, batch: Batch, part: int, step: int) -> Loss | None:
        x = batch["image"].mean(dim=(2, 3))  # [B, 3]
        if player == "critic":
            return Loss(self.players["critic"](x).square().mean(), {}) if step > 1 else None
        error = (self.players["model"](x) - x).square().mean()
        return Loss(error, {"error": error, "indices": batch["index"].float().sum()})

    def look(self, batch: Batch) -> Look:
        x = batch["image"].mean(dim=(2, 3))
        return Look({"val_error": (self.model(x) - x).square().mean().item()}, None)

    def statistics(self) -> dict[str, float]:
        return {"seen": self.model.seen.item()}

    def headline(self, line: Mapping[str, float]) -> str:
        return f"loss {line['loss']:.3f}"


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(runs._KINDS, "toy", ToyRun)
    torch.set_num_threads(1)


def tasks(config: ToyRun) -> BuildTask:
    return lambda number, weights, grown, device: ToyTask(config, number, weights)


def toy(*stages: dict[str, Any], **changes: Any) -> ToyRun:
    first, *then = [
        StageConfig(**{"steps": 8, "batch_size": 4, "optimizer": OPTIMIZER, **stage}) for stage in stages or ({},)
    ]
    settings: dict[str, Any] = {"log_every": 1, "val_every": 4, "checkpoint_every": 2, "val_samples": 2, **changes}
    return ToyRun(recipe="toy", stage=first, then=tuple(then), **settings)


def run(config: ToyRun, out: Path, **options: Any) -> TrainResult:
    return train_run(config, tasks(config), out=out, progress=False, **options)


def bits(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.numpy().tobytes()
    if isinstance(state, dict):
        return {key: bits(value) for key, value in state.items()}
    return [bits(value) for value in state] if isinstance(state, list | tuple) else state


def content(out: Path) -> Any:
    folder = find_checkpoint(out)
    lines = [{key: value for key, value in line.items() if "second" not in key} for line in read_metrics(out)]
    return (
        folder.name,
        bits(read_weights(folder)),
        bits(read_weights(folder, mean=True)),
        bits(read_state(folder)),
        lines,
    )


STAGES = ({}, {"steps": 6, "trains": ("second",), "ema_decay": 0.9}, {"steps": 4, "batch_size": 6, "accumulate": 3})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    patch = pytest.MonkeyPatch()
    patch.setitem(runs._KINDS, "toy", ToyRun)
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("engine") / "whole"
    run(toy(*STAGES), out)
    patch.undo()
    return out


@pytest.mark.parametrize("at", range(0, 18, 2))
def test_resumed_anywhere_in_any_stage_it_ends_with_the_same_bits(whole: Path, tmp_path: Path, at: int) -> None:
    class KilledError(Exception):
        pass

    config = toy(*STAGES)
    out = tmp_path / "run"

    def killed(number: int, *rest: Any) -> ToyTask:
        task = tasks(config)(number, *rest)
        loss, begin = task.loss, config.start_of(number)

        def failing(player: str, batch: Batch, part: int, step: int) -> Loss | None:
            if begin + step == at + 1:
                raise KilledError
            return loss(player, batch, part, step)

        task.loss = failing  # type: ignore[method-assign]
        return task  # type: ignore[return-value]

    with pytest.raises(KilledError):
        train_run(config, killed, out=out, progress=False)
    # what fails before its first step leaves nothing behind
    assert (checkpoint_steps(out) if out.exists() else [0])[-1] == at
    run(config, out, resume=True)
    assert content(out) == content(whole)


def test_the_steps_are_those_of_a_bare_optimizer(tmp_path: Path) -> None:
    """Without dropout a stage of two players is two loops of Adam; parts of a batch average to the whole."""
    config = toy({"batch_size": 6, "accumulate": 3, "steps": 5})
    built: list[ToyTask] = []

    def still(number: int, *rest: Any) -> ToyTask:
        built.append(tasks(config)(number, *rest))  # type: ignore[arg-type]
        built[-1].model.drop.p = 0.0
        if not shapes:
            shapes.update({name: tensor.clone() for name, tensor in built[-1].model.state_dict().items()})
        return built[-1]

    shapes: dict[str, torch.Tensor] = {}
    result = train_run(config, still, out=tmp_path / "run", progress=False)
    model = Toy()
    model.load_state_dict(shapes)
    model.drop.p = 0.0
    optimizer = build_optimizer(model, OPTIMIZER)
    from models.data.loader import Loader

    loader = Loader(EmbeddedSource("train"), Crop(size=8), batch_size=6)
    for step in range(1, 6):
        x = loader.batch(step)["image"].mean(dim=(2, 3))
        optimizer.zero_grad()
        (model(x) - x).square().mean().backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(result.model.get_parameter(name), parameter, rtol=1e-4, atol=1e-6)
    assert [line["critic"] for line in read_metrics(tmp_path / "run")[1:]]
    assert "critic" not in read_metrics(tmp_path / "run")[0]


def test_a_frozen_part_keeps_its_bits_and_its_statistics(whole: Path) -> None:
    ends = [read_weights(find_checkpoint(whole, step)) for step in (8, 14)]
    means = read_weights(find_checkpoint(whole, 14), mean=True)
    for name in ends[0]:
        same = torch.equal(ends[0][name], ends[1][name])
        assert same == name.startswith("first"), name
    # the third stage started from the mean, which is what the second is judged by
    assert not torch.equal(means["second.weight"], ends[1]["second.weight"])
    lines = read_metrics(whole)
    assert [line["step"] for line in lines] == list(range(1, 19))
    assert [line["step"] for line in lines if "val_error" in line] == [4, 8, 12, 14, 16, 18]


def test_a_running_mean_is_that_of_its_definition() -> None:
    model = Toy()
    mean = WeightMean(model, 0.75)
    expected = {name: parameter.detach().double().clone() for name, parameter in model.named_parameters()}
    for _ in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
            model.seen.add_(1)
        mean.update(model)
        expected = {n: 0.75 * expected[n] + 0.25 * p.detach().double() for n, p in model.named_parameters()}
    assert mean.mean["seen"].item() == 5
    for name, value in expected.items():
        torch.testing.assert_close(mean.mean[name].double(), value, rtol=1e-5, atol=1e-6)


def test_weights_decay_in_matrices_only() -> None:
    model = Toy()
    optimizer = build_optimizer(model, OptimizerConfig(kind="adamw", lr=0.1, weight_decay=0.5, schedule="constant"))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.dim() == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_a_part_that_is_none_cannot_train() -> None:
    with pytest.raises(UserError, match="trains: expected 'all' or some of first, second, drop, got 'third'"):
        freeze(Toy(), ("third",))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_its_step_and_keeps_the_model(tmp_path: Path, value: float) -> None:
    config, out = toy(), tmp_path / "run"

    def spoiled(number: int, *rest: Any) -> ToyTask:
        task = tasks(config)(number, *rest)
        loss = task.loss

        def bad(player: str, batch: Batch, part: int, step: int) -> Loss | None:
            good = loss(player, batch, part, step)
            if step < 6 or good is None:
                return good
            return Loss(good.total * value, {**good.terms, "error": good.total * value})

        task.loss = bad  # type: ignore[method-assign]
        return task  # type: ignore[return-value]

    with pytest.raises(NotFiniteLossError, match=r"step 6: loss of the model is (nan|inf), by error; .* step 4$"):
        train_run(config, spoiled, out=out, progress=False)
    kept = read_weights(find_checkpoint(out / "failed"))
    assert all(tensor.isfinite().all() for tensor in kept.values())
    assert checkpoint_steps(out)[-1] == 4
    run(config, out, resume=True)  # with the cause put right it goes on
    assert checkpoint_steps(out)[-1] == 8


def test_one_training_at_a_time_in_a_folder(tmp_path: Path) -> None:
    out, config = tmp_path / "run", toy()

    def second(number: int, *rest: Any) -> ToyTask:
        with pytest.raises(UserError, match="run: another process trains in this folder"):
            run(config, out)
        return tasks(config)(number, *rest)  # type: ignore[return-value]

    train_run(config, second, out=out, progress=False)
    assert checkpoint_steps(out)[-1] == 8


def test_what_fails_before_its_first_step_leaves_nothing(tmp_path: Path) -> None:
    def broken(*_: object) -> ToyTask:
        raise ValueError("features: none")

    with pytest.raises(ValueError, match="features: none"):
        train_run(toy(), broken, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    run(toy(), tmp_path / "run")


def test_a_stage_starts_from_another_run(whole: Path, tmp_path: Path) -> None:
    config = toy({"start": str(whole), "steps": 1}, log_every=1)
    run(config, tmp_path / "run")
    begun = read_weights(find_checkpoint(tmp_path / "run", 0))
    assert bits(begun) == bits(read_weights(find_checkpoint(whole), mean=True))
    with pytest.raises(UserError, match="nowhere: holds no checkpoint"):
        run(toy({"start": "nowhere"}), tmp_path / "other")


def test_a_fresh_stage_forgets_the_one_before(tmp_path: Path) -> None:
    run(toy({"steps": 2}, {"steps": 1, "start": "fresh"}), tmp_path / "run")
    seen = [line["seen"] for line in read_metrics(tmp_path / "run")]
    assert seen == [1, 2, 1]


@pytest.mark.parametrize("damage", ["kind", "shape", "type"])
def test_a_state_of_something_else_is_one_line(tmp_path: Path, damage: str) -> None:
    out, config = tmp_path / "run", toy()
    run(config, out)
    shutil.rmtree(find_checkpoint(out))  # so that there is something left to do
    file = find_checkpoint(out) / "state.pt"
    state = torch.load(file, weights_only=True)
    other: Any = {
        "kind": {"optimizers": {"other": {}}},
        "shape": state | {"modules": {"critic": {"weight": torch.zeros(5, 5), "bias": torch.zeros(1)}}},
        "type": state | {"optimizers": 7},
    }[damage]
    torch.save(other, file)
    with pytest.raises(UserError, match="does not fit the config of this run") as caught:
        run(config, out, resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["null", "[1]", '{"loss": 1}', "{" * 5000, "nonsense"])
def test_a_log_line_of_something_else_is_one_line(tmp_path: Path, line: str) -> None:
    out, config = tmp_path / "run", toy()
    run(config, out)
    shutil.rmtree(find_checkpoint(out))
    with (out / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"metrics.jsonl: line 9") as caught:
        run(config, out, resume=True)
    assert "\n" not in str(caught.value)


def test_the_log_goes_to_a_tracker_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    tracker = SimpleNamespace(
        init=lambda **options: said.append(options),
        log=lambda line, step: said.append((step, line["loss"])),
        finish=lambda: said.append("finished"),
    )
    monkeypatch.setitem(__import__("sys").modules, "trackio", tracker)
    run(toy({"steps": 2}, track="trackio"), tmp_path / "run")
    losses = [(line["step"], line["loss"]) for line in read_metrics(tmp_path / "run")]
    assert said[0]["name"] == "run"
    assert json.dumps(said[0]["config"])
    assert said[1:] == [*losses, "finished"]
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match="track: package wandb is not installed"):
        run(toy(track="wandb"), tmp_path / "other")


def test_another_config_is_named(whole: Path) -> None:
    config = toy(*STAGES)
    other = dataclasses.replace(config, stage=dataclasses.replace(config.stage, steps=9))
    with pytest.raises(UserError, match=r"another config \(stage.steps 8 / 9\)"):
        run(other, whole, resume=True)
