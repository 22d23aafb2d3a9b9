"""Train an image tokenizer: ``python -m models.train_tokenizer RECIPE [options]``.

``--help`` lists the recipes, ``RECIPE --help`` every option of one. ``--resume`` continues a stopped or
killed training from its newest checkpoint, to the same bits as an unbroken one.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import tyro
from accelerate import Accelerator, PartialState

from models import command
from models.config_json import differing_fields
from models.data.photos import Photo, load_photos, to_image
from models.errors import UserError
from models.recipes.tokenizers import RECIPES
from models.tokenizers import Tokenizer, build_tokenizer
from models.tokenizers.features import codebook_features, fit_codebook
from models.training.checkpoint import (
    checkpoint_steps,
    find_checkpoint,
    load_config,
    read_state,
    read_weights,
    rebuild_tokenizer,
    save_checkpoint,
    save_config,
)
from models.training.config import TrainConfig
from models.training.run_log import Display, RunLog
from models.training.signals import Stopped
from models.training.timing import Stopwatch
from models.training.trainer import Trainer, learning_rate, seed_step, training_crops

Recipe = tyro.extras.subcommand_type_from_defaults(
    {name: recipe() for name, recipe in RECIPES.items()},
    {name: inspect.getdoc(recipe) or "" for name, recipe in RECIPES.items()},
)


class TrainResult(NamedTuple):
    """A finished training."""

    tokenizer: Tokenizer  # in eval mode
    step: int  # steps done
    metrics: dict[str, float]  # last line of metrics.jsonl


def train(config: TrainConfig, *, out: Path | str, resume: bool = False, progress: bool = True) -> TrainResult:
    """Train a tokenizer and leave config, metrics, TensorBoard files and checkpoints in ``out``.

    Args:
        config: what to train; see :mod:`models.recipes`.
        out: run folder, created if need be. It may hold a run of this config only with ``resume``.
        resume: continue from the newest checkpoint in ``out``, if there is one, else start.
        progress: show a progress bar on stderr.

    Returns:
        ``TrainResult(tokenizer, step, metrics)``.

    Raises:
        UserError: if ``out`` holds another run, or a checkpoint or the data cannot be read.
        Stopped: after SIGTERM or Ctrl-C, once the step is finished and its checkpoint written.
    """
    run_dir = Path(out)
    start = _resume_step(config, run_dir, resume)
    # said out loud, because only then several processes on CPUs find each other
    on_cpu = not torch.accelerator.is_available()
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=config.mixed_precision)
    photos = load_photos(config.data)
    if start is None:
        start = 0
        trainer = Trainer(config, _new_tokenizer(config, photos, accelerator.device), photos, accelerator)
        if accelerator.is_main_process:
            save_config(run_dir, config)
        _save(run_dir, start, trainer)  # a disk that is full already is known before the first step
    else:
        checkpoint = find_checkpoint(run_dir, start)
        tokenizer = rebuild_tokenizer(config, read_weights(checkpoint), checkpoint)
        trainer = Trainer(config, tokenizer, photos, accelerator)
        trainer.load_state_dict(read_state(checkpoint))
    metrics = _run(trainer, run_dir, start, progress)
    tokenizer = accelerator.unwrap_model(trainer.tokenizer, keep_fp32_wrapper=False)
    return TrainResult(tokenizer.eval(), config.steps, metrics)


def _resume_step(config: TrainConfig, run_dir: Path, resume: bool) -> int | None:
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


def _new_tokenizer(config: TrainConfig, photos: Sequence[Photo], device: torch.device) -> Tokenizer:
    """Fresh weights and the codebook's initialisation, the same on every process."""
    seed_step(config.seed, 0, 0)
    features = codebook_features(config, photos)
    tokenizer = build_tokenizer(config.network, config.quantizer, features).to(device)
    fit_codebook(tokenizer, config, training_crops(config, photos, 0))
    return tokenizer


def _run(trainer: Trainer, run_dir: Path, start: int, progress: bool) -> dict[str, float]:
    """Steps ``start + 1`` to the last; returns the last line of the log."""
    config, accelerator = trainer.config, trainer.accelerator
    main = accelerator.is_main_process
    whole, quantizer = Stopwatch(accelerator.device), Stopwatch(accelerator.device)
    logged = start
    with (
        command.stop_on_signals() as request,
        quantizer.watching(trainer.tokenizer.quantizer),
        RunLog(run_dir, start, enabled=main) as log,
        Display(config.recipe, start, config.steps, enabled=progress and main) as display,
    ):
        for step in range(start + 1, config.steps + 1):
            whole.start()
            values = trainer.step(step)
            whole.stop()
            validates = step == config.steps or step % config.val_every == 0
            if validates or step % config.log_every == 0:
                line = _line(trainer, values, step)
                line |= _speed(whole, quantizer, step - logged, config.batch_size * accelerator.num_processes)
                logged = step
                if validates:
                    psnr, pairs = trainer.validate()
                    quantizer.take()  # not part of training
                    line["val_psnr"] = psnr.item()
                    log.image("held-out", to_image(pairs), step)
                log.write(line)
                display.describe(line)
            display.advance(step)
            signum = _agree(request.signum, accelerator)
            if signum or step == config.steps or step % config.checkpoint_every == 0:
                log.sync()
                _save(run_dir, step, trainer)
            if signum:
                raise Stopped(signum, step)
        return log.last


def _line(trainer: Trainer, values: dict[str, torch.Tensor], step: int) -> dict[str, float]:
    """What is logged of a step, but for the times."""
    line: dict[str, float] = {"step": step}
    line |= {name: value.item() for name, value in values.items()}
    line |= {name: float(value) for name, value in trainer.tokenizer.quantizer.usage()._asdict().items()}
    return line | {"lr": learning_rate(trainer.config.optimizer, step, trainer.config.steps)}


def _speed(whole: Stopwatch, quantizer: Stopwatch, steps: int, images: int) -> dict[str, float]:
    """Mean times of the last ``steps`` steps, of ``images`` images each."""
    seconds = whole.take() / steps
    return {
        "step_seconds": seconds,
        "quantizer_seconds": quantizer.take() / steps,
        "images_per_second": images / seconds,
    }


def _agree(signum: int, accelerator: Accelerator) -> int:
    """The signal any process has received, on all processes; 0 for none."""
    if accelerator.num_processes == 1:
        return signum
    return int(accelerator.gather(torch.tensor([signum], device=accelerator.device)).max())


def _save(run_dir: Path, step: int, trainer: Trainer) -> None:
    if trainer.accelerator.is_main_process:
        save_checkpoint(run_dir, step, trainer.weights(), trainer.state_dict())
    trainer.accelerator.wait_for_everyone()


def train_tokenizer(
    config: Recipe,
    *,
    out: Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> None:
    """Train an image tokenizer.

    Args:
        config: the recipe.
        out: run folder, runs/RECIPE by default.
        resume: continue from the newest checkpoint in the run folder.
        progress: show a progress bar.
    """
    run_dir = out if out is not None else Path("runs") / config.recipe
    result = train(config, out=run_dir, resume=resume, progress=progress)
    PartialState().print(  # once, however many processes there are
        f"{run_dir}: {result.step} steps, held-out PSNR {result.metrics['val_psnr']:.2f} dB, "
        f"codes used {result.metrics['utilization']:.1%}"
    )


def main() -> None:
    """The command line."""
    tyro.cli(
        train_tokenizer,
        prog="python -m models.train_tokenizer",
        config=(tyro.conf.CascadeSubcommandArgs, tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )


if __name__ == "__main__":
    sys.exit(command.run(main))
