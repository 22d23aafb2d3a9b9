"""Train a prior of codes or latents: ``python -m models.train_prior RECIPE --data codes:DIR [options]``.

``models.extract_codes`` makes the codes. ``--help`` lists the recipes, ``RECIPE --help`` every option of one.
``--resume`` continues a stopped or killed training from its newest checkpoint, to the same bits as an unbroken one.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import tyro
from accelerate import PartialState

from models import command
from models.config_json import Flat
from models.recipes import PRIORS
from models.training.engine import TrainResult, train_run
from models.training.prior_data import check_same, describe_data
from models.training.prior_run import PriorRun
from models.training.prior_task import prior_tasks
from models.training.runs import load_prior_config

Recipe = Flat[
    tyro.extras.subcommand_type_from_defaults(
        {name: recipe() for name, recipe in PRIORS.items()},
        {name: inspect.getdoc(recipe) or "" for name, recipe in PRIORS.items()},
    )
]


def train(config: PriorRun, *, out: Path | str, resume: bool = False, progress: bool = True) -> TrainResult:
    """Train a prior; arguments, result and errors are those of :func:`models.training.engine.train_run`."""
    config = describe_data(config)
    assert config.codes is not None
    if resume and (Path(out) / "config.json").exists():
        check_same(load_prior_config(out).codes, out, config.codes, config.data)
    return train_run(config, prior_tasks(config), out=out, resume=resume, progress=progress)


def train_prior(
    config: Recipe,
    *,
    out: Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> None:
    """Train a prior of codes or latents.

    Args:
        config: the recipe.
        out: run folder, runs/RECIPE by default.
        resume: continue from the newest checkpoint in the run folder.
        progress: show a progress bar.
    """
    run_dir = out if out is not None else Path("runs") / config.recipe
    result = train(config, out=run_dir, resume=resume, progress=progress)
    metrics = result.metrics
    against = f", {metrics['val_unigram_ratio']:.2f} of the unigram's" if "val_unigram_ratio" in metrics else ""
    against += f" and {metrics['val_bigram_ratio']:.2f} of the bigram's" if against else ""
    against += f", {metrics['val_gaussian_ratio']:.2f} of a Gaussian's" if "val_gaussian_ratio" in metrics else ""
    PartialState().print(  # once, however many processes there are
        f"{run_dir}: {result.step} steps, held-out loss {metrics['val_loss']:.4f}{against}"
    )


def main() -> None:
    """The command line."""
    tyro.cli(
        train_prior,
        prog="python -m models.train_prior",
        config=(tyro.conf.CascadeSubcommandArgs, tyro.conf.FlagCreatePairsOff),
    )


if __name__ == "__main__":
    sys.exit(command.run(main))
