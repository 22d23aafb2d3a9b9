"""Every pocket prior, from data to samples: ``python -m models.pipelines [PRIOR ...]`` or ``make pipelines``.

On embedded street scenes, rendered once: a tokenizer, its codes (or latents, or codes of clips), a prior, samples
(OUT/priors.webp), and how the video prior goes on with streets (video.webp). Killed at any point, the same command
goes on where it stopped. ``--record`` writes the table and the pictures of models/README.md.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from PIL import Image, ImageSequence
from rich.console import Console

from models import command, sample
from models.claims.rendered import rendered
from models.config_json import differing_fields
from models.data.pixels import to_float
from models.environment import environment
from models.errors import UserError
from models.evaluation.record import write_json
from models.extract_codes import Kind, extract
from models.recipes import PRIORS, TOKENIZERS, with_num_codes
from models.report.pictures import load_picture
from models.report.showcase import video_rows
from models.report.systems import draw_rows, prior_table, record_priors, recorded_minutes
from models.train_prior import train as train_prior
from models.train_tokenizer import train as train_tokenizer
from models.training.checkpoint import checkpoint_steps
from models.training.jobs import Job, side_by_side
from models.training.prior_data import CODEBOOK, describe_data
from models.training.run_log import read_metrics
from models.training.runs import load_config

_SCENES = "classes:scenes:size=64x64,length=2048"  # the class is the weather
_SHOWN = 8  # samples of the picture, and frames of the video strip
_VIDEO, _STREETS = "video_pocket", (1, 3)  # the prior of the strip, and of which held-out clips
_CODES = 1024  # of a tokenizer, over all its groups


class Codes(NamedTuple):
    """What a prior learns, and of which tokenizer."""

    told: str  # in the table
    folder: str  # where they go
    tokenizer: str
    kind: Kind = "codes"
    data: str = _SCENES


GRID = Codes("8x8 codes of 1024", "codes", "patch_fc")
GROUPS = Codes("8x8 codes of 4 x 256", "codes_of_groups", "patch_groups")
LATENTS = Codes("8x8 latents of 8 dimensions", "latents", "patch_fc", "latents")
CLIPS = Codes("4 frames of 8x8 codes", "codes_of_clips", "patch_fc", data="scenes:size=64x64,frames=4,length=256")
PIPELINES: dict[str, Codes] = {
    "ar_pocket": GRID,
    "gpt_pocket": GRID,
    "nar_pocket": GRID,
    "grouped_pocket": GROUPS,
    "parallel_pocket": GROUPS,
    "video_pocket": CLIPS,
    "ldm_pocket": LATENTS,
    "dit_pocket": LATENTS,
    "sit_pocket": LATENTS,
    "concept_pocket": LATENTS,
}


@dataclass(frozen=True, kw_only=True)
class PipelinesConfig:
    """Train the pocket priors, one after the other, on codes of small tokenizers of street scenes."""

    priors: Annotated[tuple[str, ...], tyro.conf.Positional] = ()  # which; all of them if none is named
    out: Path = Path("runs/pipelines")  # run folders, codes and samples; what is there is continued
    jobs: int = 1  # trainings at once; several have one thread each
    record: bool = False  # write models/results/priors.json, the README's table and its pictures, of these priors

    def __post_init__(self) -> None:
        unknown = [name for name in self.priors if name not in PIPELINES]
        if unknown:
            raise ValueError(f"priors: expected some of {', '.join(PIPELINES)}, got {', '.join(unknown)}")
        if self.jobs < 1:
            raise ValueError(f"jobs: expected at least 1, got {self.jobs}")


def run_pipeline(name: str, codes: Codes, out: Path, *, progress: bool = True) -> dict[str, Any]:
    """From data to samples, unless that was done; what ``out/NAME/pipeline.json`` holds."""
    done = out / name / "pipeline.json"
    if done.exists():
        found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return found
    tokenizer, folder = out / codes.tokenizer, out / codes.folder
    make_codes(codes, out, progress=progress)
    config = dataclasses.replace(PRIORS[name](), data=f"{codes.kind}:{folder}")
    if (out / name / "config.json").exists():
        _check_same(out / name, describe_data(config))
    result = train_prior(config, out=out / name, resume=True, progress=progress)
    sample.main(out / name, tokenizer, out / name / "samples", count=_SHOWN, batch_size=_SHOWN)
    lines = read_metrics(out / name)
    entry = {
        "recipe": name,
        "of": codes.told,
        "steps": config.stage.steps,
        "batch_size": config.stage.batch_size,
        "minutes": config.stage.steps * median(line["step_seconds"] for line in lines) / 60,
        **{key: value for key, value in result.metrics.items() if key.startswith("val_")},
        "environment": environment(),
    }
    write_json(done, entry)
    return entry


def make_codes(codes: Codes, out: Path, *, progress: bool = True) -> None:
    """What a prior learns, and the tokenizer of it."""
    tokenizer = out / codes.tokenizer
    _train_tokenizer(codes.tokenizer, tokenizer, rendered(_SCENES, out / "data"), progress)
    data = rendered(codes.data, out / "data")
    extract(tokenizer, out / codes.folder, data=data, kind=codes.kind, progress=progress)


def run_side_by_side(names: Sequence[str], out: Path, processes: int, console: Console) -> None:
    """The same pipelines, several trainings at once."""
    told = {PIPELINES[name] for name in names}
    for data in (_SCENES, *(codes.data for codes in told)):
        rendered(data, out / "data", processes)

    def parts(codes: Codes) -> set[str]:
        done = (out / codes.folder / CODEBOOK).exists()
        return set() if done else {codes.folder, codes.tokenizer}

    quiet = functools.partial(make_codes, progress=False), functools.partial(run_pipeline, progress=False)
    jobs = [
        Job(
            name=codes.folder,
            call=quiet[0],
            arguments=(codes, out),
            makes=functools.partial(parts, codes),
            minutes=math.inf,  # priors wait for it
        )
        for codes in sorted(told, key=lambda codes: codes.folder)
    ]
    minutes = recorded_minutes()
    for name in names:
        codes = PIPELINES[name]
        makes = functools.partial(lambda name, codes: {name} | parts(codes), name, codes)
        arguments = name, codes, out
        jobs.append(Job(name=name, call=quiet[1], arguments=arguments, makes=makes, minutes=minutes.get(name, 0.0)))
    for done, (job, _) in enumerate(side_by_side(jobs, processes), 1):
        console.print(f"{done}/{len(jobs)} {job.name}", highlight=False)


def _train_tokenizer(recipe: str, run_dir: Path, data: str, progress: bool) -> None:
    config = dataclasses.replace(with_num_codes(TOKENIZERS[recipe](), _CODES), data=data)
    if (run_dir / "config.json").exists():
        _check_same(run_dir, config)
    if checkpoint_steps(run_dir)[-1:] == [config.steps]:
        return  # without a look at its lock: several priors need it at once
    train_tokenizer(config, out=run_dir, resume=True, progress=progress)


def _check_same(run_dir: Path, config: Any) -> None:
    differences = differing_fields(load_config(run_dir), config)
    if differences:
        raise UserError(
            f"{run_dir}: expected a run of {config.recipe} as it is now ({differences[0]}); give another --out"
        )


def pictures(name: str, folder: Path) -> tuple[str, torch.Tensor]:  # label, [n, 3, S, S]
    """The samples of a prior; of a video prior the frames of its first sample."""
    label = name.removesuffix("_pocket")
    if (folder / "images").is_dir():
        paths = sorted((folder / "images").glob("*.png"))
        images = [load_picture(path) for path in paths]
    else:
        with Image.open(folder / "videos" / "000000.gif") as video:
            images = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(video)]
    return label, to_float(torch.from_numpy(np.stack(images[:_SHOWN])).movedim(-1, 1))


def draw_video(out: Path) -> None:
    """Streets, and how the video prior goes on with them."""
    codes = PIPELINES[_VIDEO]
    longer = codes.data.replace("frames=4", f"frames={_SHOWN}")
    rows = video_rows(out / codes.tokenizer, out / _VIDEO, _STREETS, longer)
    draw_rows(rows, out / "video.webp", titles=[f"frame {number}" for number in range(1, _SHOWN + 1)])


def main() -> None:
    config = tyro.cli(PipelinesConfig)
    console, names = Console(), config.priors or tuple(PIPELINES)
    entries = []
    if config.jobs > 1:
        run_side_by_side(names, config.out, config.jobs, console)
    for number, name in enumerate(names, 1):
        console.print(f"{number}/{len(names)} {name}", highlight=False)
        entries.append(run_pipeline(name, PIPELINES[name], config.out))
    print(prior_table(entries))
    rows = [pictures(name, config.out / name / "samples") for name in names]
    draw_rows(rows, config.out / "priors.webp")
    (config.out / "priors.md").write_text(prior_table(entries) + "\n", encoding="utf-8")
    if _VIDEO in names:
        draw_video(config.out)
    console.print(f"pictures: {config.out}/*.webp")
    lost = [e["recipe"] for e in entries if not all(v < 1 for k, v in e.items() if k.endswith("_ratio"))]
    if lost:
        raise UserError(f"no better than counting, or than a Gaussian: {', '.join(lost)}")
    if config.record:
        record_priors(entries, [name for name in PIPELINES if name not in names], config.out)


if __name__ == "__main__":
    sys.exit(command.run(main))
