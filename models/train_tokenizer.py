"""Train an image tokenizer: ``python -m models.train_tokenizer RECIPE [options]``.

``--help`` lists the recipes, ``RECIPE --help`` every option of one. ``--resume`` continues a stopped or
killed training from its newest checkpoint, to the same bits as an unbroken one.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import tyro
from accelerate import PartialState

from models import command
from models.config_json import Flat
from models.recipes import CONCEPTS, TOKENIZERS
from models.training.concept_run import ConceptRun
from models.training.concept_task import concept_tasks
from models.training.engine import TrainResult, train_run
from models.training.tokenizer_run import TokenizerRun
from models.training.tokenizer_task import tokenizer_tasks

_RECIPES: dict[str, Callable[[], TokenizerRun | ConceptRun]] = {**TOKENIZERS, **CONCEPTS}
Recipe = Flat[
    tyro.extras.subcommand_type_from_defaults(
        {name: recipe() for name, recipe in _RECIPES.items()},
        {name: inspect.getdoc(recipe) or "" for name, recipe in _RECIPES.items()},
    )
]


def train(
    config: TokenizerRun | ConceptRun, *, out: Path | str, resume: bool = False, progress: bool = True
) -> TrainResult:
    """Train a tokenizer; arguments, result and errors are those of :func:`models.training.engine.train_run`."""
    tasks = tokenizer_tasks(config) if isinstance(config, TokenizerRun) else concept_tasks(config)
    return train_run(config, tasks, out=out, resume=resume, progress=progress)


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
    used = f", codes used {result.metrics['utilization']:.1%}" if "utilization" in result.metrics else ""
    PartialState().print(  # once, however many processes there are
        f"{run_dir}: {result.step} steps, held-out PSNR {result.metrics['val_psnr']:.2f} dB{used}"
    )


def main() -> None:
    """The command line."""
    tyro.cli(
        train_tokenizer,
        prog="python -m models.train_tokenizer",
        config=(tyro.conf.CascadeSubcommandArgs, tyro.conf.FlagCreatePairsOff),
    )


if __name__ == "__main__":
    sys.exit(command.run(main))
