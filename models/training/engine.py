"""The loop that everything trains in: stages, steps, log, checkpoints, signals.

A stage starts from fresh weights, from the stage before, or from another run; a run goes on from its newest
checkpoint to the same bits as an unbroken one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from models.config_json import differing_fields
from models.data.loader import Loader
from models.errors import UserError, first_line
from models.training.checkpoint import (
    checkpoint_steps,
    find_checkpoint,
    read_state,
    read_weights,
    save_checkpoint,
    save_config,
)
from models.training.config import RunConfig
from models.training.parallel import Parallel
from models.training.run_log import Display, RunLog
from models.training.runs import load_config
from models.training.signals import Stopped, stop_on_signals
from models.training.step import NotFiniteLossError, Stepper, seed_step
from models.training.task import Batch, Task
from models.training.timing import Stopwatch

# the number of a stage, weights to start from (None: fresh), and whether a network may have grown since
_LOCK = ".lock"
BuildTask = Callable[[int, Mapping[str, torch.Tensor] | None, bool, torch.device], Task]


class TrainResult(NamedTuple):
    """A finished training."""

    model: nn.Module  # in eval mode, with the running mean of its weights where there is one
    step: int  # steps done
    metrics: dict[str, float]  # last line of metrics.jsonl


def train_run(
    config: RunConfig, build: BuildTask, *, out: Path | str, resume: bool = False, progress: bool = True
) -> TrainResult:
    """Train all stages and leave config, metrics, TensorBoard files and checkpoints in ``out``.

    Args:
        config: what to train.
        build: makes the task of a stage.
        out: run folder, created if need be. It may hold a run of this config only with ``resume``.
        resume: continue from the newest checkpoint in ``out``, if there is one, else start.
        progress: show a progress bar on stderr.

    Returns:
        ``TrainResult(model, step, metrics)``.

    Raises:
        UserError: if ``out`` holds another run or is being written, or a checkpoint or the data cannot be read.
        NotFiniteLossError: after saving the state of the step that failed.
        Stopped: after SIGTERM or Ctrl-C, once the step is finished and its checkpoint written.
    """
    # said out loud, because only then several processes on CPUs find each other
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    run_dir = Path(out)
    there = set(run_dir.iterdir()) if run_dir.is_dir() else None
    with _locked(run_dir, enabled=accelerator.is_main_process), ExitStack() as undo:
        training = _Training(config, build, accelerator, run_dir, progress)
        if accelerator.is_main_process:
            undo.callback(lambda: None if training.started else _remove(run_dir, there))
        return training.run(_resume_step(config, run_dir, resume))


class _Training:
    def __init__(
        self, config: RunConfig, build: BuildTask, accelerator: Accelerator, run_dir: Path, progress: bool
    ) -> None:
        self._config, self._build, self._accelerator = config, build, accelerator
        self._run_dir, self._progress = run_dir, progress
        self._main, self._rank, self._world = (
            accelerator.is_main_process,
            accelerator.process_index,
            accelerator.num_processes,
        )
        self._parallel = Parallel(config.parallel, self._world)
        self.started = False  # what fails before its first step leaves nothing

    def run(self, done: int | None) -> TrainResult:
        config = self._config
        number = 0 if done is None else config.stage_at(min(done + 1, config.steps))
        stepper = self._enter(number, done)
        if done is None:
            done = 0
            if self._main:
                self._run_dir.mkdir(parents=True, exist_ok=True)
            self._save(stepper, 0)  # a disk that is full already is known before the first step
            if self._main:
                save_config(self._run_dir, config)
        with (
            stop_on_signals() as request,
            RunLog(self._run_dir, done, config, enabled=self._main) as log,
            Display(config.recipe, done, config.steps, enabled=self._progress and self._main) as display,
        ):
            while True:
                self._stage(number, stepper, done, log, display, request)
                done = config.start_of(number) + config.stages[number].steps
                if done == config.steps:
                    break
                number += 1
                stepper = self._enter(number, None, before=stepper)
        return TrainResult(stepper.settle(), config.steps, log.last)

    def _enter(self, number: int, done: int | None, before: Stepper | None = None) -> Stepper:
        """The modules of a stage: at its start, or as they were after ``done`` steps of the run."""
        config, stage = self._config, self._config.stages[number]
        begin = config.start_of(number)
        resumed = done is not None and done > begin
        seed_step(config.seed, 0 if number == 0 else begin, 0)
        weights, state, grown = None, {}, not resumed
        source: Path | str = self._run_dir
        if resumed or (done == 0 and number == 0):
            source = find_checkpoint(self._run_dir, done)
            weights, state, grown = read_weights(source), read_state(source), False
        elif stage.start == "previous" and number > 0:
            source = find_checkpoint(self._run_dir, begin)
            # what the stage before is judged by is what this one starts from
            weights, state = read_weights(source, mean=True), read_state(source)
        elif stage.start not in ("previous", "fresh"):
            source = find_checkpoint(stage.start)
            weights = read_weights(source, mean=True)
        try:
            task = self._build(number, weights, grown, self._accelerator.device)
            for module in task.players.values():
                module.to(self._accelerator.device)
            stepper = Stepper(task, config, self._parallel, self._accelerator.device)
            if resumed or (done == 0 and number == 0):
                mean = read_weights(source, mean=True) if stage.ema_decay is not None else None
                stepper.load_state_dict(_upgraded(state), mean)
            else:
                stepper.load_opponents(state)
        except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            if weights is None:
                raise
            raise UserError(f"{source}: does not fit the config of this run ({first_line(error)})") from error
        return stepper

    def _stage(self, number: int, stepper: Stepper, done: int, log: RunLog, display: Display, request: Any) -> None:
        config, stage, task, device = (
            self._config,
            self._config.stages[number],
            stepper.task,
            self._accelerator.device,
        )
        begin = config.start_of(number)
        if done >= begin + stage.steps:
            return
        whole, timed = Stopwatch(device), Stopwatch(device)
        held_out = self._held_out(task)
        logged, wait_before = done, 0.0
        with ExitStack() as stack:
            loader = stack.enter_context(self._loader(task, number, done - begin))
            if task.timed is not None:
                stack.enter_context(timed.watching(task.timed))
            batches = iter(loader)
            for step in range(done + 1, begin + stage.steps + 1):
                whole.start()
                seed_step(config.seed, step, self._rank)
                batch = next(batches)
                try:
                    values = stepper.step(batch, step - begin)
                except NotFiniteLossError as error:
                    self.started = True
                    raise self._failed(error, stepper, step) from error
                self.started = True
                whole.stop()
                last = step == begin + stage.steps
                looks = last or step % config.val_every == 0
                if looks or step % config.log_every == 0:
                    line = self._line(task, values, step, stage.optimizer.rate(step - begin, stage.steps))
                    steps = step - logged
                    waited, wait_before = loader.wait_seconds - wait_before, loader.wait_seconds
                    line |= _speed(task, whole, timed, steps, stage.batch_size * self._world, waited)
                    logged = step
                    if looks:
                        with stepper.averaged(), torch.no_grad():
                            look = task.look(held_out)
                        timed.take()  # not part of training
                        line |= look.values
                        if look.picture is not None:
                            log.image("held-out", look.picture, step)
                    log.write(line)
                    display.describe(task.headline(line))
                display.advance(step)
                signum = _agree(request.signum, self._accelerator)
                if signum or last or step % config.checkpoint_every == 0:
                    log.sync()
                    self._save(stepper, step)
                if signum:
                    raise Stopped(signum, step)

    def _loader(self, task: Task, number: int, start: int) -> Loader:
        source, transform = task.data("train")
        return Loader(
            source,
            transform,
            batch_size=task.stage.batch_size,
            seed=self._config.seed + number,
            rank=self._rank,
            world=self._world,
            start_step=start,
            workers=self._config.workers,
            device=self._accelerator.device,
        )

    def _held_out(self, task: Task) -> Batch:
        source, transform = task.data("val")
        size, seed, device = self._config.val_samples, self._config.seed, self._accelerator.device
        with Loader(source, transform, batch_size=size, seed=seed, device=device) as loader:
            return loader.batch(1)

    def _line(self, task: Task, values: Mapping[str, torch.Tensor], step: int, rate: float) -> dict[str, float]:
        """What is logged of a step, but for the times."""
        line: dict[str, float] = {"step": step}
        line |= {name: value.item() for name, value in values.items()}
        return line | task.statistics() | {"lr": rate}

    def _save(self, stepper: Stepper, step: int) -> None:
        weights, mean, state = stepper.weights(), stepper.mean(), stepper.state_dict()
        if self._main:
            ends = [self._config.start_of(n) for n in range(1, len(self._config.stages))]
            save_checkpoint(self._run_dir, step, weights, state, mean=mean, kept=ends)
        self._accelerator.wait_for_everyone()

    def _failed(self, error: NotFiniteLossError, stepper: Stepper, step: int) -> NotFiniteLossError:
        """Keep what can be looked into, and say where to go on from."""
        weights, mean, state = stepper.weights(), stepper.mean(), stepper.state_dict()
        if self._main:
            save_checkpoint(self._run_dir / "failed", step, weights, state, mean=mean)
        last = checkpoint_steps(self._run_dir)[-1] if self._main else 0
        return NotFiniteLossError(
            f"step {step}: {error}; the model as it was is in {self._run_dir}/failed, "
            f"the newest checkpoint is after step {last}"
        )


def _resume_step(config: RunConfig, run_dir: Path, resume: bool) -> int | None:
    """The step to go on from, None to start."""
    if not (run_dir / "config.json").exists():
        return None
    if not resume:
        raise UserError(f"{run_dir}: already holds a run; continue it with --resume or choose another --out")
    differing = differing_fields(load_config(run_dir), config)
    if differing:
        raise UserError(f"{run_dir}: the run was started with another config ({', '.join(differing)})")
    steps = checkpoint_steps(run_dir)
    return steps[-1] if steps else None


@contextmanager
def _locked(run_dir: Path, *, enabled: bool) -> Iterator[None]:
    """One training at a time in a folder; the lock goes with the process that holds it, however it ends."""
    if not enabled:
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run_dir / _LOCK, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{run_dir}: another process trains in this folder") from error
        yield
    finally:
        os.close(descriptor)


def _remove(run_dir: Path, there: set[Path] | None) -> None:
    """Remove what was not there before; None if there was no folder."""
    for path in set(run_dir.iterdir()) - (there or set()):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    if there is None:
        run_dir.rmdir()


def _upgraded(state: dict[str, Any]) -> dict[str, Any]:
    """State of a run from before there were stages."""
    if "optimizers" in state:
        return state
    optimizers, modules = {"model": state["optimizer"]}, {}
    if "discriminator" in state:
        optimizers["discriminator"], modules["discriminator"] = state["disc_optimizer"], state["discriminator"]
    return {"optimizers": optimizers, "modules": modules}


def _speed(
    task: Task, whole: Stopwatch, timed: Stopwatch, steps: int, samples: int, waited: float
) -> dict[str, float]:
    """Mean times of the last ``steps`` steps, of ``samples`` samples each."""
    seconds = whole.take() / steps
    return {
        "step_seconds": seconds,
        "quantizer_seconds": timed.take() / steps,
        "data_seconds": waited / steps,
        f"{task.unit}_per_second": samples / seconds,
        "tokens_per_second": samples * task.tokens / seconds,
    }


def _agree(signum: int, accelerator: Accelerator) -> int:
    """The signal any process has received, on all processes; 0 for none."""
    if accelerator.num_processes == 1:
        return signum
    return int(accelerator.gather(torch.tensor([signum], device=accelerator.device)).max())
