"""The demo: one small tokenizer, five quantizers, a prior, one page. ``python -m models.demo`` or ``make demo``.

Trains the ``patch_*`` recipes one after the other on the same photographs, scores each on photographs held out
whole, trains a small prior on the codes of one of them and samples it; writes ``results.json`` and ``report.html``.
Killed at any point, the same command goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import tyro
from PIL import Image
from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from models import command
from models.config_json import differing_fields
from models.data.photos import load_photos
from models.environment import environment
from models.errors import UserError, read_object
from models.evaluation.photos import evaluate
from models.evaluation.record import write_json
from models.extract_codes import extract
from models.networks.patch import PatchConfig
from models.recipes import PRIORS, TOKENIZERS, with_num_codes
from models.report import METRICS, draw_readme_picture, finding, score_table, write_report
from models.sample import main as draw
from models.train_prior import train as train_prior
from models.train_tokenizer import train
from models.training.config import RunConfig
from models.training.prior_run import PriorRun
from models.training.run_log import read_metrics
from models.training.runs import load_config
from models.training.tokenizer_run import TokenizerRun, replace_stage

_CURVE_POINTS = 30  # looks at held-out crops during a training
PRIOR, PRIOR_OF = "prior", "patch_lc"  # its folder, and the tokenizer whose codes it learns
_SAMPLES = 24  # images of the page


class Contender(NamedTuple):
    """One quantizer of the comparison."""

    recipe: str
    title: str
    description: str


CONTENDERS = (
    Contender("patch_fc", "VQGAN-FC", "Few dimensions per code, codes trained by gradient"),
    Contender("patch_ema", "VQGAN-EMA", "Codes follow the running mean of the vectors they win"),
    Contender("patch_cvq", "CVQ", "Codes out of use move to encoder outputs"),
    Contender("patch_lc", "VQGAN-LC", "Frozen k-means codes behind a trained projection"),
    Contender("patch_groups", "Grouped VQ", "Four codebooks, each for a quarter of a wider vector"),
)
TITLES = {contender.recipe: contender.title for contender in CONTENDERS} | {PRIOR: "Prior"}  # of everything trained


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Compare five quantizers on real photographs, and sample a prior of the codes of one."""

    out: Path = Path("runs/demo")  # folder of runs and report; an interrupted demo in it is continued
    steps: int = 400  # training steps of each tokenizer
    prior_steps: int = 200  # training steps of the prior
    num_codes: int = 4096  # codes of each tokenizer, over all its groups
    seed: int = 0  # of weights and crops
    data: str = "embedded"  # "embedded" photographs, or a folder of images
    restart: bool = False  # throw away what is in the output folder
    readme_picture: Path | None = None  # draw the picture of the README from a finished demo, and nothing else


def configs(demo: DemoConfig) -> dict[str, TokenizerRun]:
    """The training of each contender; only the quantizer differs."""
    often = max(1, demo.steps // _CURVE_POINTS)
    return {
        contender.recipe: dataclasses.replace(
            replace_stage(with_num_codes(TOKENIZERS[contender.recipe](), demo.num_codes), steps=demo.steps),
            seed=demo.seed,
            data=demo.data,
            log_every=often,
            val_every=often,
        )
        for contender in CONTENDERS
    }


def prior_config(demo: DemoConfig) -> PriorRun:
    """The training of the prior, on the codes of one tokenizer."""
    often = max(1, demo.prior_steps // _CURVE_POINTS)
    config = PRIORS["ar_pocket"]()
    stage = dataclasses.replace(config.stage, steps=demo.prior_steps)
    data = f"codes:{demo.out / 'codes'}"
    return dataclasses.replace(config, stage=stage, seed=demo.seed, data=data, log_every=often)


class Board(Progress):
    """A bar per training and one for everything; bars follow the metrics files that trainings write."""

    def __init__(self, trainings: Mapping[str, RunConfig], folder: Path, console: Console) -> None:
        self._folder, self._bars = folder, dict[str, TaskID]()
        self._active: str | None = None  # the run whose metrics file is read on every refresh
        super().__init__(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            refresh_per_second=4,
            speed_estimate_period=120,
            disable=not console.is_terminal,
        )
        # what an earlier session did is there from the start, so that it does not count as speed
        done = {name: int(_last_line(folder / name).get("step", 0)) for name in trainings}
        for name, config in trainings.items():
            self._bars[name] = self.add_task(
                TITLES[name], total=config.steps, completed=done[name], text="", start=False
            )
        total = sum(config.steps for config in trainings.values())
        self._whole = self.add_task("All", total=total, completed=sum(done.values()), text="")

    @contextmanager
    def following(self, name: str) -> Iterator[None]:
        """Show the progress of one run."""
        self.start_task(self._bars[name])
        self._active = name
        yield
        self._active = None
        self.follow(name)

    def follow(self, name: str) -> None:
        """Bring the bar of a run up to what its metrics file says."""
        last = _last_line(self._folder / name)
        if last:
            text = f"{last['loss']:.2f} nats a code"
            if name != PRIOR:
                text = f"PSNR {last['psnr']:.1f} dB, {last['utilization']:.1%} of codes"
            self.update(self._bars[name], completed=last["step"], text=text)
            done = sum(task.completed for task in self.tasks if task.id != self._whole)
            self.update(self._whole, completed=done)

    def get_renderables(self) -> Iterable[RenderableType]:
        if self._active is not None:
            self.follow(self._active)
        return super().get_renderables()


def run(demo: DemoConfig, console: Console) -> Path:
    """Train, score, sample and report what is not there yet; returns the path of the page."""
    # paths end up in the config of the prior, which must not depend on where the command is called
    demo = dataclasses.replace(demo, out=demo.out.resolve())
    trainings: dict[str, TokenizerRun | PriorRun] = {**configs(demo), PRIOR: prior_config(demo)}
    if demo.restart:
        _remove_demo(demo.out)
    _check_same_demo(demo.out, trainings)
    demo.out.mkdir(parents=True, exist_ok=True)
    pending = [name for name in trainings if not (demo.out / name / "stamp.json").exists()]
    if pending or not (demo.out / "results.json").exists():
        started, resumed = time.perf_counter(), any((demo.out / name).exists() for name in trainings)
        with Board(trainings, demo.out, console) as board:
            for name, config in trainings.items():
                with board.following(name):
                    if name in pending:
                        _run_one(config, demo.out / name, progress=not console.is_terminal)
        write_json(demo.out / "results.json", collect(demo, time.perf_counter() - started, resumed))
    return write_report(demo.out)


def _last_line(run_dir: Path) -> dict[str, float]:
    lines = read_metrics(run_dir)
    return lines[-1] if lines else {}


def _run_one(config: TokenizerRun | PriorRun, run_dir: Path, progress: bool) -> None:
    if isinstance(config, PriorRun):
        tokenizer = run_dir.parent / PRIOR_OF
        extract(tokenizer, run_dir.parent / "codes", progress=False)
        train_prior(config, out=run_dir, resume=True, progress=progress)
        draw(run_dir, tokenizer, run_dir / "samples", count=_SAMPLES, seed=config.seed)
    else:
        train(config, out=run_dir, resume=True, progress=progress)
        evaluate(run_dir)
    # written last: a run that has it is complete
    write_json(run_dir / "stamp.json", environment())


def _check_same_demo(out: Path, trainings: Mapping[str, TokenizerRun | PriorRun]) -> None:
    for name, config in trainings.items():
        if not (out / name / "config.json").exists():
            continue
        try:
            held = load_config(out / name)
            if isinstance(held, PriorRun):
                held = dataclasses.replace(held, codes=None)  # filled in when training starts
            differences = differing_fields(held, config)
        except UserError as error:
            raise UserError(f"{error}; give another --out, or --restart to throw this demo away") from error
        if differences:
            raise UserError(
                f"{out} holds a demo with other settings ({differences[0]}): give another --out, or --restart"
            )


def _remove_demo(out: Path) -> None:
    """Remove what a demo writes and nothing else."""
    for name in (*TITLES, "codes", "originals"):
        if (out / name).exists():
            shutil.rmtree(out / name)
    for name in ("results.json", "report.html"):
        (out / name).unlink(missing_ok=True)


def collect(demo: DemoConfig, seconds: float, resumed: bool) -> dict[str, Any]:
    """results.json: everything the page shows, from what the runs left behind."""
    photos = load_photos(demo.data)
    held_out = [photo for photo in photos if photo.split == "val"]
    (demo.out / "originals").mkdir(exist_ok=True)
    originals = []
    for number, photo in enumerate(held_out):
        file = f"originals/photo_{number}.png"
        Image.fromarray(photo.image).save(demo.out / file)
        height, width = photo.image.shape[:2]
        originals.append({"name": photo.name, "file": file, "height": height, "width": width})
    network = configs(demo)[CONTENDERS[0].recipe].network
    assert isinstance(network, PatchConfig)
    settings = ("steps", "prior_steps", "num_codes", "seed", "data")
    return {
        "settings": {name: getattr(demo, name) for name in settings},
        "patch_size": network.patch_size,
        "photos": originals,
        "training_photos": [photo.name for photo in photos if photo.split == "train"],
        "tokenizers": [_collect_run(contender, demo.out) for contender in CONTENDERS],
        "prior": _collect_prior(demo.out),
        "environment": _provenance(demo, seconds, resumed),
    }


def _collect_run(contender: Contender, out: Path) -> dict[str, Any]:
    run_dir = out / contender.recipe
    quantizer = load_config(run_dir).quantizer
    scores = read_object(run_dir / "evaluation.json", "an evaluation")
    photos, _ = scores.pop("photos"), scores.pop("about")
    lines = read_metrics(run_dir)
    step_seconds = median(line["step_seconds"] for line in lines)
    quantizer_seconds = median(line["quantizer_seconds"] for line in lines)
    return {
        **contender._asdict(),
        "groups": quantizer.groups,
        "num_codes": quantizer.num_codes,
        "code_dim": quantizer.code_dim // quantizer.groups,
        "metrics": {
            **scores,
            "bits": quantizer.groups * math.log2(quantizer.num_codes),
            "step_ms": 1000 * step_seconds,
            "quantizer_share": quantizer_seconds / step_seconds,
        },
        "photos": [{**photo, "picture": f"{contender.recipe}/{photo['picture']}"} for photo in photos],
        "codebook": f"{contender.recipe}/evaluation/codebook.npz",
        "curves": {name: _curve(lines, name) for name in ("utilization", "val_psnr")},
    }


def _collect_prior(out: Path) -> dict[str, Any]:
    last = _last_line(out / PRIOR)
    pictures = sorted((out / PRIOR / "samples" / "images").glob("*.png"))
    return {
        "of": PRIOR_OF,
        "metrics": {name: value for name, value in last.items() if name.startswith("val_")},
        "pictures": [str(picture.relative_to(out)) for picture in pictures],
    }


def _curve(lines: list[dict[str, float]], name: str) -> dict[str, list[float]]:
    logged = [line for line in lines if name in line]
    return {"step": [line["step"] for line in logged], "value": [line[name] for line in logged]}


def _provenance(demo: DemoConfig, seconds: float, resumed: bool) -> dict[str, str]:
    """Where the numbers come from; values that differ between runs of a resumed demo are listed side by side."""
    stamps = [read_object(demo.out / name / "stamp.json", "a note of where a training ran") for name in TITLES]
    merged = {name: "; ".join(dict.fromkeys(stamp[name] for stamp in stamps)) for name in stamps[0]}
    time_spent = f"{seconds / 60:.1f} minutes" + (", resuming an earlier start" if resumed else "")
    return {
        "Command": shlex.join(["python", "-m", "models.demo", *sys.argv[1:]]),
        "Finished": datetime.now().astimezone().isoformat(" ", "minutes"),
        "Time": time_spent,
        **merged,
    }


def summary(results: dict[str, Any]) -> Table:
    """The scores as a table of at most 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("Quantizer")
    for metric in METRICS:
        table.add_column(metric.name, justify="right")
    tokenizers = results["tokenizers"]
    for entry, row in zip(tokenizers, score_table(METRICS, tokenizers), strict=True):
        table.add_row(entry["title"], *(Text(cell.text, "bold green" if cell.best else "") for cell in row))
    return table


def main() -> None:
    demo = tyro.cli(DemoConfig)
    console = Console()
    if demo.readme_picture is not None:
        draw_readme_picture(demo.out, demo.readme_picture)
        return
    page = run(demo, console)
    results = read_object(demo.out / "results.json", "results of a demo")
    console.print(f"\n{finding(results['tokenizers'])}\n", style="bold", highlight=False)
    console.print(summary(results))
    console.print(" · ".join(f"{metric.name}: {metric.unit}" for metric in METRICS), style="dim", highlight=False)
    console.print(f"\nThe report: {page}")


if __name__ == "__main__":
    sys.exit(command.run(main))
