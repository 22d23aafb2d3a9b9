"""Every pocket recipe, trained and looked at: ``python -m models.systems [RECIPE ...]`` or ``make systems``.

Trains the pocket recipe of each system of the papers, scores it on held-out crops beside a trivial baseline, and
draws what it makes of some of them (OUT/systems.webp), of prefixes of concept tokens and of groups (prefixes.webp),
and what the tokens of SGC-VQGAN stand for (classes.webp). Killed at any point, the same command goes on where it
stopped. ``--record`` writes the table and the pictures of models/README.md.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console

from models import command
from models.config_json import differing_fields
from models.data.loader import Loader
from models.data.source import open_source
from models.data.transforms import Crop
from models.environment import environment
from models.errors import UserError
from models.evaluation.record import write_json
from models.evaluation.subjects import Subject, subject_of
from models.losses.pixel import psnr
from models.metrics.codes import CodeCounts
from models.recipes import CONCEPTS, TOKENIZERS
from models.report.showcase import class_rows, prefix_rows, telling
from models.report.systems import System, draw_rows, draw_systems, record, table
from models.tokenizers.concept import ConceptTokenizer
from models.train_tokenizer import train
from models.training.concept_run import ConceptRun
from models.training.concept_task import powers_of_two
from models.training.jobs import Job, side_by_side
from models.training.run_log import read_metrics
from models.training.runs import load_codec, load_config
from models.training.tokenizer_run import TokenizerRun

POCKET = {name: recipe for name, recipe in (TOKENIZERS | CONCEPTS).items() if name.endswith(("_pocket", "_clusters"))}
CROPS = 128  # held-out crops that a system is scored on
_BATCH = 32
_PREFIXED = ("semanticist_pocket", "mgvq_pocket")  # what the first tokens and groups are shown of
_SEMANTIC = "sgc_pocket"  # what the classes of tokens are shown of
_SHOWN = 8  # images in a row


@dataclass(frozen=True, kw_only=True)
class SystemsConfig:
    """Train the pocket recipes of the papers' systems, one after the other."""

    recipes: Annotated[tuple[str, ...], tyro.conf.Positional] = ()  # which; all of them if none is named
    out: Path = Path("runs/systems")  # a run folder each; what is there is continued
    jobs: int = 1  # trainings at once; several have one thread each
    seed: int = 0  # of weights and crops
    record: bool = False  # write models/results/systems.json, the README's table and its pictures

    def __post_init__(self) -> None:
        unknown = [name for name in self.recipes if name not in POCKET]
        if unknown:
            raise ValueError(f"recipes: expected some of {', '.join(POCKET)}, got {', '.join(unknown)}")
        if self.jobs < 1:
            raise ValueError(f"jobs: expected at least 1, got {self.jobs}")
        if self.record and self.recipes:
            raise ValueError("record: expected all recipes, got a choice of them")


def run_system(name: str, folder: Path, *, seed: int = 0, progress: bool = True) -> dict[str, Any]:
    """Train one recipe to its end, unless it was, and score it; what ``folder/system.json`` holds."""
    config = dataclasses.replace(POCKET[name](), seed=seed)
    if (folder / "config.json").exists():
        differences = differing_fields(load_config(folder), config)
        if differences:
            raise UserError(f"{folder}: expected a run of {name} as it is now ({differences[0]}); give another --out")
    if (folder / "system.json").exists():
        found: dict[str, Any] = json.loads((folder / "system.json").read_text(encoding="utf-8"))
        return found
    train(config, out=folder, resume=True, progress=progress)
    entry = {"recipe": name, **_training(config, folder), **score(config, folder), "environment": environment()}
    write_json(folder / "system.json", entry)
    return entry


def image_size(config: TokenizerRun | ConceptRun) -> int:
    """Pixels per side."""
    return config.encoder.image_size if isinstance(config, ConceptRun) else config.stage.image_size


def held_out(config: TokenizerRun | ConceptRun, count: int = CROPS) -> torch.Tensor:  # [count, 3, S, S]
    """Crops of the held-out side of a run's data, the same ones for every system on it."""
    crop = Crop(size=image_size(config))
    return Loader(open_source(config.data, "val"), crop, batch_size=count).batch(1)["image"]


@torch.no_grad()
def score(config: TokenizerRun | ConceptRun, folder: Path) -> dict[str, Any]:
    """PSNR of the mean error over held-out crops, that of each crop's mean colour, and use of codes.

    Of concept tokens also that of prefixes: what the decoder makes of the first 0, 1, 2, 4, ... of them.
    """
    tokenizer = load_codec(folder).tokenizer
    subject, images = subject_of(tokenizer), held_out(config)
    codebook = subject.codebook
    counts = None if codebook is None else CodeCounts(*codebook.shape[:2])
    concepts = tokenizer if isinstance(tokenizer, ConceptTokenizer) else None
    prefixes = [] if concepts is None else [0, *powers_of_two(concepts.length)]
    parts, cut, tokens = [], {keep: [] for keep in prefixes}, 0
    for first in range(0, len(images), _BATCH):
        batch = images[first : first + _BATCH]
        numbers = torch.arange(first, first + len(batch))
        codes, decoded = subject(batch, numbers)
        parts.append(decoded)
        for keep in prefixes:
            assert concepts is not None
            cut[keep].append(concepts.decode(codes, keep=keep, numbers=numbers.tolist()))
        tokens += subject.tokens(codes)
        if counts is not None:
            counts.update(codes)
    return {
        "data": config.data,
        "crops": len(images),
        "image_size": image_size(config),
        "tokens": tokens // len(images),
        "bits_per_token": subject.bits_per_token,
        "codes": None if codebook is None else list(codebook.shape),
        "psnr": psnr(torch.cat(parts), images).item(),
        "psnr_baseline": psnr(images.mean(dim=(2, 3), keepdim=True).expand_as(images), images).item(),
        **({} if not cut else {"psnr_prefixes": {str(k): psnr(torch.cat(c), images).item() for k, c in cut.items()}}),
        **({} if counts is None else counts.compute()),
    }


def _training(config: TokenizerRun | ConceptRun, folder: Path) -> dict[str, Any]:
    lines = read_metrics(folder)
    return {
        "steps": config.steps,
        "batch_size": config.stage.batch_size,
        "seed": config.seed,
        # at the median rate of each stretch of the log; resumed or not
        "minutes": config.steps * median(line["step_seconds"] for line in lines) / 60,
    }


@torch.no_grad()
def look(entry: dict[str, Any], folder: Path, count: int) -> System:
    """A system with what it makes of the first held-out crops."""
    config = load_config(folder)
    assert isinstance(config, TokenizerRun | ConceptRun)
    subject: Subject = subject_of(load_codec(folder).tokenizer)
    images = held_out(config)[:count]
    _, decoded = subject(images, torch.arange(count))
    return System(entry, images, decoded)


def draw_details(names: Sequence[str], out: Path) -> None:
    """What prefixes make, and what tokens stand for, of those recipes that are among ``names``."""
    rows = []
    for folder in (out / name for name in _PREFIXED if name in names):
        config = load_config(folder)
        assert isinstance(config, TokenizerRun | ConceptRun)
        rows += prefix_rows(folder, telling(held_out(config, 4 * _SHOWN), _SHOWN))
    if rows:
        draw_rows(rows, out / "prefixes.webp")
    if _SEMANTIC in names:
        scenes, legend = class_rows(out / _SEMANTIC, _SHOWN)
        draw_rows(scenes, out / "classes.webp", legend=legend)


def main() -> None:
    config = tyro.cli(SystemsConfig)
    console, names = Console(), config.recipes or tuple(POCKET)
    entries = []
    if config.jobs > 1:
        train_all = functools.partial(run_system, seed=config.seed, progress=False)
        jobs = [
            Job(name=name, call=train_all, arguments=(name, config.out / name), makes=functools.partial(set, [name]))
            for name in names
        ]
        for number, (job, _) in enumerate(side_by_side(jobs, config.jobs), 1):
            console.print(f"{number}/{len(names)} {job.name} done", highlight=False)
    for number, name in enumerate(names, 1):
        console.print(f"{number}/{len(names)} {name}", highlight=False)
        entries.append(run_system(name, config.out / name, seed=config.seed))
    print(table(entries))
    seen = [look(entry, config.out / entry["recipe"], _SHOWN) for entry in entries]
    draw_systems(seen, config.out / "systems.webp")
    draw_details(names, config.out)
    (config.out / "systems.md").write_text(table(entries) + "\n", encoding="utf-8")
    console.print(f"pictures: {config.out}/*.webp")
    lost = [entry["recipe"] for entry in entries if not entry["psnr"] > entry["psnr_baseline"]]
    if lost:
        raise UserError(f"no better than the baseline: {', '.join(lost)}")
    if config.record:
        record(entries, config.out)


if __name__ == "__main__":
    sys.exit(command.run(main))
