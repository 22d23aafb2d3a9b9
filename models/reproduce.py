"""The papers' claims, put to the test: ``python -m models.reproduce CLAIM ...``.

Each claim trains a few small models, measures them, and says HOLDS or DOES NOT HOLD by checks that were written down
before. Trainings are kept in the output folder under a name made of all their settings: claims share them, what was
killed goes on where it was, and a second call changes nothing.

    python -m models.reproduce --list                        # claims, papers, minutes on two cores
    python -m models.reproduce lc-utilization                # train what is missing, print table and verdict
    python -m models.reproduce lc-utilization --seeds 0 1 2 3
    python -m models.reproduce --all --jobs 2                # everything, and one page: runs/claims/claims.html
    python -m models.reproduce mgvq-groups --scale paper --data IMAGENET     # the published recipe, on GPUs

At pocket scale the directions of the papers are looked for, not their numbers: each result says what was measured
instead, with how many seeds, at which bits, steps and data. ``--publish`` also copies the results into
models/results/claims and writes the table of models/README.md.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from models import command
from models.claims import CLAIMS
from models.claims.claim import Claim, Codes, Made, Prior, Run, Scale, Train, Trial, run_key, with_seed
from models.claims.rendered import rendered
from models.claims.result import result_of
from models.environment import environment
from models.errors import UserError
from models.evaluation.record import write_json
from models.extract_codes import extract
from models.report.claims import RESULTS, number, publish, read_results, recorded_minutes, write_page
from models.train_classifier import train as train_classifier
from models.train_prior import train as train_prior
from models.train_tokenizer import train as train_tokenizer
from models.training.checkpoint import checkpoint_steps, find_checkpoint, read_weights
from models.training.classifier_run import ClassifierRun
from models.training.concept_run import ConceptRun
from models.training.jobs import Job, side_by_side
from models.training.prior_data import CODEBOOK
from models.training.run_log import read_metrics
from models.training.tokenizer_run import TokenizerRun

_FEATURES = "quantizer.table.features"


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """Put the papers' claims to the test; --list names them."""

    claims: Annotated[tuple[str, ...], tyro.conf.Positional] = ()  # names of claims
    all: bool = False  # every claim there is
    list: bool = False  # name the claims and do nothing else
    scale: Scale = "pocket"  # "paper" trains the published recipes and compares with the published numbers
    seeds: tuple[int, ...] | None = None  # of the runs; None takes those of the claim
    data: str | None = None  # data set of "paper"; None takes that of the recipe
    out: Path = Path("runs/claims")  # folder of trainings, results and page
    jobs: int = 1  # trainings and measurements at once; several have one thread each
    publish: bool = False  # also copy the results into models/results/claims, and the table into models/README.md

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"jobs: expected at least 1, got {self.jobs}")


class Workshop:
    """Makes the runs that claims ask for, each once."""

    def __init__(self, out: Path, console: Console, data: str | None = None) -> None:
        # paths end up in the configs of runs, which must not depend on where the command is called
        self.out, self._console, self._data = out.resolve(), console, data

    def made(self, run: Run) -> Made:
        """A run with all that it is made from, trained as far as it is not."""
        if isinstance(run, Train):
            folder = self._tokenizer(run)
            return Made(run=folder, seed=run.config.seed, tokenizer=folder)
        tokenizer, codes = self._tokenizer(run.codes.tokenizer), self._codes(run.codes)
        folder = self.folder(run)
        classifies = isinstance(run.config, ClassifierRun)
        if not _complete(folder, run.config.steps) or (classifies and not (folder / "scores.json").exists()):
            self._tell(run, folder)
            config = dataclasses.replace(run.config, data=f"{run.codes.kind}:{codes}")
            train: Any = train_classifier if classifies else train_prior
            train(config, out=folder, resume=True, progress=self._console.is_terminal)
        data = self._rendered(run.codes.data or "")
        return Made(run=folder, seed=run.config.seed, tokenizer=tokenizer, codes=codes, data=data)

    def makes(self, run: Run) -> set[str]:
        """Names of what is still to be made for a run."""
        if isinstance(run, Prior):
            codes, made = self._codes_folder(run.codes), self.makes(run.codes.tokenizer)
            return {self.folder(run).name} | made | (set() if (codes / CODEBOOK).exists() else {codes.name})
        if _complete(self.folder(run), run.config.steps):
            return set()
        return {self.folder(run).name} | (set() if run.features_of is None else self.makes(run.features_of))

    def render(self, run: Run, processes: int) -> None:
        """Make the files of the data that a run is trained on."""
        if isinstance(run, Prior):
            self.render(run.codes.tokenizer, processes)
            self._rendered(run.codes.data or "", processes)
        elif self._data is None:
            self._rendered(run.config.data, processes)

    def trainings(self, run: Run) -> dict[str, float]:
        """Minutes at the rate of each stage's fastest stretch, of a run that is done and all that it is made from.

        Other stretches are those of a machine that had other work to do.
        """
        if isinstance(run, Prior):
            others = self.trainings(run.codes.tokenizer)
        else:
            others = {} if run.features_of is None else self.trainings(run.features_of)
        folder, first, seconds = self.folder(run), 0, 0.0
        lines = [(line["step"], line["step_seconds"]) for line in read_metrics(folder) if "step_seconds" in line]
        for stage in run.config.stages:
            rates = [rate for step, rate in lines if first < step <= first + stage.steps]
            seconds += stage.steps * min(rates)
            first += stage.steps
        return {**others, folder.name: round(seconds / 60, 3)}

    def _tokenizer(self, run: Train) -> Path:
        folder, config = self.folder(run), run.config
        if _complete(folder, config.steps):
            return folder
        config = dataclasses.replace(config, data=self._rendered(config.data if self._data is None else self._data))
        if run.features_of is not None:
            config = _with_features(config, self._features(run.features_of))
        self._tell(run, folder)
        train_tokenizer(config, out=folder, resume=True, progress=self._console.is_terminal)
        return folder

    def _codes_folder(self, codes: Codes) -> Path:
        told = json.dumps([codes.kind, codes.data, codes.samples])
        return self.out / "codes" / f"{run_key(codes.tokenizer)}-{_short(told)}"

    def _codes(self, codes: Codes) -> Path:
        folder = self._codes_folder(codes)
        data = None if codes.data is None else self._rendered(codes.data)
        # shards that are there are not made again
        extract(
            self._tokenizer(codes.tokenizer),
            folder,
            data=data,
            kind=codes.kind,
            samples=codes.samples,
            progress=False,
        )
        return folder

    def _features(self, run: Train) -> Path:
        """The frozen codes of a run as a file."""
        path = self.out / "features" / f"{run_key(run)}.npy"
        if not path.exists():
            weights = read_weights(find_checkpoint(self._tokenizer(run)))
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial.npy")
            np.save(partial, weights[_FEATURES].numpy())
            partial.replace(path)
        return path

    def _rendered(self, spec: str, processes: int = 1) -> str:
        return rendered(spec, self.out / "data", processes)

    def folder(self, run: Run) -> Path:
        """Where a run is kept."""
        key = run_key(run) if self._data is None else f"{run_key(run)}-{_short(self._data)}"
        return self.out / "runs" / f"{run.config.recipe}-{key}"

    def _tell(self, run: Run, folder: Path) -> None:
        self._console.print(f"  {folder.name}: {run.config.steps} steps, seed {run.config.seed}", highlight=False)


def _complete(folder: Path, steps: int) -> bool:
    return checkpoint_steps(folder)[-1:] == [steps]


def _with_features(config: TokenizerRun | ConceptRun, path: Path) -> TokenizerRun | ConceptRun:
    assert config.quantizer is not None
    return dataclasses.replace(config, quantizer=dataclasses.replace(config.quantizer, features=str(path)))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def reproduce(claim: Claim, options: ReproduceConfig, console: Console) -> dict[str, Any]:
    """Train what is missing, measure, judge; writes and returns the result."""
    trial = claim.trial(options.scale)
    if trial is None:
        raise UserError(f"scale: expected 'pocket' for {claim.name}, which has no published recipe, got 'paper'")
    seeds = _seeds(trial, options)
    workshop = Workshop(options.out, console, options.data)
    values: dict[str, dict[str, list[float]]] = {variant.name: {} for variant in trial.variants}
    stamps, trainings = list[dict[str, str]](), dict[str, dict[str, float]]()
    for name, run in _runs(trial, seeds):
        measured = _measured(trial.measure, workshop, run)
        stamps.append(measured["environment"])
        trainings.setdefault(str(run.config.seed), {}).update(workshop.trainings(run))
        for metric, value in measured["values"].items():
            values[name].setdefault(metric, []).append(float("nan") if value is None else value)
    merged = {name: "; ".join(dict.fromkeys(stamp[name] for stamp in stamps)) for name in stamps[0]}
    result = result_of(claim, options.scale, seeds, values, trainings, merged)
    suffix = "" if options.scale == "pocket" else "-paper"
    _write(options.out / "results" / f"{claim.name}{suffix}.json", result)
    return result


def _seeds(trial: Trial, options: ReproduceConfig) -> tuple[int, ...]:
    seeds = trial.seeds if options.seeds is None else options.seeds
    if not seeds:
        raise UserError("seeds: expected at least one, got none")
    return seeds


def _runs(trial: Trial, seeds: Sequence[int]) -> list[tuple[str, Run]]:
    """All runs, each with the name of its variant."""
    return [(variant.name, with_seed(variant.run, seed)) for seed in seeds for variant in trial.variants]


def in_turn(claims: Sequence[Claim], options: ReproduceConfig, console: Console) -> Iterator[Claim]:
    """The claims; where several jobs are allowed each as soon as all of it is measured."""
    if options.jobs == 1:
        yield from claims
        return
    workshop, jobs, missing = Workshop(options.out, console, options.data), dict[str, Job](), list[set[str]]()
    minutes = recorded_minutes()
    for claim in claims:
        trial = claim.trial(options.scale)
        assert trial is not None
        missing.append(set())
        for _, run in _runs(trial, _seeds(trial, options)):
            path = _measured_path(trial.measure, workshop, run)
            if path.exists():
                continue
            workshop.render(run, options.jobs)
            missing[-1].add(path.stem)
            arguments = (trial.measure, run, options.out, options.data)
            makes = functools.partial(workshop.makes, run)
            expected = sum(minutes.get(name, 0.0) for name in makes())
            jobs[path.stem] = Job(
                name=path.stem, call=_measured_apart, arguments=arguments, makes=makes, minutes=expected
            )
    yield from [claim for claim, left in zip(claims, missing, strict=True) if not left]
    for done, (job, _) in enumerate(side_by_side(tuple(jobs.values()), options.jobs), 1):
        console.print(f"  {done}/{len(jobs)} {job.name}", highlight=False)
        for claim, left in zip(claims, missing, strict=True):
            if job.name in left:
                left.remove(job.name)
                if not left:
                    yield claim


def _measured_apart(measure: Callable[[Made], Mapping[str, float]], run: Run, out: Path, data: str | None) -> None:
    _measured(measure, Workshop(out, Console(quiet=True), data), run)


def _measured_path(measure: Callable[[Made], Mapping[str, float]], workshop: Workshop, run: Run) -> Path:
    key = _short(f"{measure.__module__} {inspect.getsource(measure)}")
    return workshop.out / "measured" / f"{workshop.folder(run).name}-{key}.json"


def _measured(measure: Callable[[Made], Mapping[str, float]], workshop: Workshop, run: Run) -> dict[str, Any]:
    """The numbers of a run, measured once as long as its settings and the measurement stay what they are."""
    path = _measured_path(measure, workshop, run)
    if not path.exists():
        made = workshop.made(run)
        torch.manual_seed(run.config.seed)
        write_json(path, {"values": dict(measure(made)), "environment": environment()})
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write(path: Path, result: dict[str, Any]) -> None:
    """Files that would not change are left alone."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    partial = path.with_suffix(".new")
    write_json(partial, result)
    if partial.read_text(encoding="utf-8") == before:
        partial.unlink()
    else:
        partial.replace(path)


def show(result: dict[str, Any], console: Console) -> None:
    """Table, checks and verdict."""
    console.print(f"\n[bold]{result['title']}[/] ({result['system']}, {result['place']})", highlight=False)
    console.print(f"{result['says']}\n{result['form']}", style="dim", highlight=False)
    if result["unequal"]:
        console.print(f"Not equal: {result['unequal']}.", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("")
    for metric in result["metrics"]:
        table.add_column(f"{metric['title']} {metric['unit']}".strip(), justify="right")
    for variant in result["variants"]:
        cells = []
        for metric in result["metrics"]:
            found = variant["values"].get(metric["key"])
            text = "" if found is None else number(metric, found)
            if metric["key"] in variant["published"]:
                text += f" (published {variant['published'][metric['key']]:g})"
            cells.append(text)
        table.add_row(variant["name"], *cells)
    console.print(table)
    for check in result["checks"]:
        gaps, spread = check["gaps"], ""
        if len(gaps) > 1 and None not in gaps:
            spread = f" ± {stdev(gaps):.3g}"
        mean = "not finite" if None in gaps else f"{fmean(gaps):.3g}{spread}"
        told = f"{check['says']}: by {mean}, at least {check['margin']:g} asked, {len(gaps)} seeds"
        console.print(Text("  yes  " if check["holds"] else "  NO   ", "green" if check["holds"] else "red") + told)
    verdict = "HOLDS" if result["holds"] else "DOES NOT HOLD"
    console.print(Text(f"{result['claim']}: {verdict}", "bold green" if result["holds"] else "bold red"))
    if result["remark"]:
        console.print(result["remark"], style="dim", highlight=False)


def chosen(options: ReproduceConfig) -> list[Claim]:
    """The claims asked for."""
    if options.all == bool(options.claims):
        raise UserError(
            f"claims: expected names or --all, got {'both' if options.all else 'neither'}; --list names them"
        )
    for name in options.claims:
        if name not in CLAIMS:
            raise UserError(f"claims: expected some of {', '.join(CLAIMS)}, got {name!r}")
    names: Iterable[str] = options.claims
    if options.all:
        names = (name for name, claim in CLAIMS.items() if claim.trial(options.scale) is not None)
    return [CLAIMS[name] for name in names]


def listed(console: Console) -> None:
    """The claims and what they cost."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for title in ("claim", "paper", "what it says", "runs a seed", "seeds", "minutes"):
        table.add_column(title, no_wrap=title == "claim")
    for claim in CLAIMS.values():
        trial = claim.pocket
        sizes = str(len(trial.variants)), str(len(trial.seeds)), f"{trial.minutes:g}"
        table.add_row(claim.name, claim.system, claim.title, *sizes)
    console.print(table)
    console.print("minutes: budget of a claim alone, on two cores; claims that share trainings cost less together")


def main() -> None:
    """The command line."""
    options = tyro.cli(
        ReproduceConfig,
        prog="python -m models.reproduce",
        description=__doc__,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    console = Console()
    if options.list:
        listed(console)
        return
    results = []
    for claim in in_turn(chosen(options), options, console):
        console.print(f"{claim.name}", highlight=False)
        results.append(reproduce(claim, options, console))
        show(results[-1], console)
        write_page(options.out / "results", options.out / "claims.html", tuple(CLAIMS))
    if options.publish:
        publish(options.out / "results", RESULTS, tuple(CLAIMS))
    console.print(f"\n{options.out / 'claims.html'}: {len(read_results(options.out / 'results'))} claims")


if __name__ == "__main__":
    sys.exit(command.run(main))
