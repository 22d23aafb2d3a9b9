"""models.pipelines: from data to samples with tiny recipes, and what it records."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console

from models import pipelines
from models.errors import UserError
from models.networks.gpt import GPTConfig
from models.recipes import PRIORS, TOKENIZERS
from models.report import systems as report
from models.report.blocks import read_block
from models.training.engine import _locked
from models.training.jobs import Job
from models.training.prior_data import CODEBOOK
from models.training.tokenizer_run import TokenizerRun, replace_stage

Made = tuple[Path, dict]
SCENES = "classes:scenes:size=16x16,length=16"


@pytest.fixture(scope="module")
def made(tiny_config: TokenizerRun, tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("pipelines")
    network = GPTConfig(style="llamagen", layers=1, heads=2, width=32, positions="rotary")
    with pytest.MonkeyPatch.context() as patch:
        tokenizer = replace_stage(tiny_config, steps=2, image_size=16)
        patch.setitem(TOKENIZERS, "patch_fc", lambda: tokenizer)
        prior = PRIORS["ar_pocket"]()
        prior = dataclasses.replace(
            prior,
            prior=dataclasses.replace(prior.prior, network=network),
            stage=dataclasses.replace(prior.stage, steps=2, batch_size=4),
            val_samples=4,
        )
        patch.setitem(PRIORS, "ar_pocket", lambda: prior)
        patch.setattr(pipelines, "_SCENES", SCENES)
        patch.setattr(pipelines, "_CODES", 16)
        codes = pipelines.GRID._replace(data=SCENES)
        return out, pipelines.run_pipeline("ar_pocket", codes, out, progress=False)


def test_it_ends_in_samples(made: Made) -> None:
    out, entry = made
    label, images = pipelines.pictures("ar_pocket", out / "ar_pocket" / "samples")
    assert (label, images.shape) == ("ar", (8, 3, 16, 16))
    assert entry["steps"] == 2
    assert {"val_loss", "val_unigram_ratio", "val_bigram_ratio"} <= entry.keys()


def test_what_is_done_is_not_done_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    out, entry = made
    monkeypatch.setattr(pipelines, "train_prior", None)  # would raise if called
    assert pipelines.run_pipeline("ar_pocket", pipelines.GRID, out) == json.loads(json.dumps(entry))


def test_a_trained_tokenizer_serves_several_at_once(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder is locked by whoever trains in it, which none has to."""
    out, _ = made
    config = pipelines.load_config(out / "patch_fc")
    monkeypatch.setitem(TOKENIZERS, "patch_fc", lambda: config)
    monkeypatch.setattr(pipelines, "_SCENES", SCENES)
    monkeypatch.setattr(pipelines, "_CODES", 16)
    with _locked(out / "patch_fc", enabled=True):
        pipelines.make_codes(pipelines.GRID._replace(data=SCENES), out, progress=False)


def test_codes_come_before_their_priors_when_several_train_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, wrote = [], []

    def in_turn(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, None]]:
        for job in jobs:
            began.append((job.name, job.makes()))
            yield job, job.call(*job.arguments)

    def codes(codes: pipelines.Codes, out: Path, progress: bool) -> None:
        wrote.append(codes.folder)
        (out / codes.folder).mkdir()
        (out / codes.folder / CODEBOOK).touch()

    monkeypatch.setattr(pipelines, "rendered", lambda spec, *_: wrote.append(spec))
    monkeypatch.setattr(pipelines, "make_codes", codes)
    monkeypatch.setattr(pipelines, "run_pipeline", lambda name, codes, out, progress: wrote.append(name))
    monkeypatch.setattr(pipelines, "side_by_side", in_turn)
    pipelines.run_side_by_side(("ar_pocket", "nar_pocket"), tmp_path, 2, Console(quiet=True))
    assert wrote == [pipelines._SCENES, pipelines._SCENES, "codes", "ar_pocket", "nar_pocket"]
    assert began == [
        ("codes", {"codes", "patch_fc"}),
        ("ar_pocket", {"ar_pocket"}),  # nothing that the other one makes
        ("nar_pocket", {"nar_pocket"}),
    ]


@pytest.mark.parametrize("ratio", [0.9, 1.0])
def test_a_prior_that_counting_beats_is_named(ratio: float, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    out, entry = made
    monkeypatch.setattr(
        pipelines, "run_pipeline", lambda *_: entry | {"val_unigram_ratio": 0.5, "val_bigram_ratio": ratio}
    )
    monkeypatch.setattr("sys.argv", ["pipelines", "ar_pocket", "--out", str(out)])
    if ratio < 1:
        pipelines.main()
    else:
        with pytest.raises(UserError, match="no better than counting, or than a Gaussian: ar_pocket"):
            pipelines.main()
    assert (out / "priors.webp").exists()


def test_wrong_names() -> None:
    with pytest.raises(ValueError, match=r"priors: expected some of ar_pocket, .*, got dit_xl$"):
        pipelines.PipelinesConfig(priors=("dit_xl",))


def test_the_readme_shows_the_committed_results() -> None:
    entries = json.loads(report.PRIOR_RESULTS.read_text(encoding="utf-8"))
    measured = [entry["recipe"] for entry in entries]
    left = [name for name in pipelines.PIPELINES if name not in measured]
    assert set(measured) <= set(pipelines.PIPELINES)
    assert read_block(report.README, "priors") == report.prior_block(entries, left)
    assert all(value < 1 for entry in entries for name, value in entry.items() if name.endswith("_ratio"))
