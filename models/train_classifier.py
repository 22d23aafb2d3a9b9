"""Train a classifier of codes: ``python -m models.train_classifier RECIPE --data codes:DIR [options]``.

``models.extract_codes`` makes the codes, of images with classes. In the end all held-out samples are classified, and
``RUN/scores.json`` says how many rightly. ``--help`` lists the recipes, ``RECIPE --help`` every option of one.
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
from models.evaluation.record import write_json
from models.recipes import CLASSIFIERS
from models.training.classifier_run import ClassifierRun
from models.training.classifier_task import classifier_tasks, describe_classified, held_out_accuracy
from models.training.engine import TrainResult, train_run
from models.training.prior_data import check_same
from models.training.runs import load_classifier_config

Recipe = Flat[
    tyro.extras.subcommand_type_from_defaults(
        {name: recipe() for name, recipe in CLASSIFIERS.items()},
        {name: inspect.getdoc(recipe) or "" for name, recipe in CLASSIFIERS.items()},
    )
]


def train(config: ClassifierRun, *, out: Path | str, resume: bool = False, progress: bool = True) -> TrainResult:
    """Train a classifier; arguments, result and errors are those of :func:`models.training.engine.train_run`.

    The accuracy over all held-out samples joins the result's metrics, as ``held_out_``.
    """
    config = describe_classified(config)
    assert config.codes is not None
    if resume and (Path(out) / "config.json").exists():
        check_same(load_classifier_config(out).codes, out, config.codes, config.data)
    result = train_run(config, classifier_tasks(config), out=out, resume=resume, progress=progress)
    scores = held_out_accuracy(result.model, config, config.stage.batch_size)
    if PartialState().is_main_process:
        write_json(Path(out) / "scores.json", {"set": config.data, "tokenizer": config.codes.tokenizer, **scores})
    told = {f"held_out_{name}": value for name, value in scores.items()}
    return result._replace(metrics=result.metrics | told)


def train_classifier(
    config: Recipe,
    *,
    out: Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> None:
    """Train a classifier of codes.

    Args:
        config: the recipe.
        out: run folder, runs/RECIPE by default.
        resume: continue from the newest checkpoint in the run folder.
        progress: show a progress bar.
    """
    run_dir = out if out is not None else Path("runs") / config.recipe
    result = train(config, out=run_dir, resume=resume, progress=progress)
    metrics = result.metrics
    PartialState().print(  # once, however many processes there are
        f"{run_dir}: {result.step} steps, top-1 {metrics['held_out_top1']:.1%} of "
        f"{metrics['held_out_samples']:.0f} held-out samples "
        f"(their most frequent class: {metrics['held_out_most_frequent']:.1%})"
    )


def main() -> None:
    """The command line."""
    tyro.cli(
        train_classifier,
        prog="python -m models.train_classifier",
        config=(tyro.conf.CascadeSubcommandArgs, tyro.conf.FlagCreatePairsOff),
    )


if __name__ == "__main__":
    sys.exit(command.run(main))
