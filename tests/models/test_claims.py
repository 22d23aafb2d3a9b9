"""Claims: how verdicts come about, runs made once, results to pages; every claim's runs build. Oracles: by hand."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from models import reproduce
from models.claims import CLAIMS
from models.claims import rendered as drawn
from models.claims.claim import (
    Chart,
    Check,
    Claim,
    Made,
    Metric,
    Prior,
    Train,
    Trial,
    Variant,
    judge,
    run_key,
    size_of,
    unequal,
    with_seed,
)
from models.errors import UserError
from models.report import claims as report
from models.report.blocks import read_block
from models.reproduce import ReproduceConfig, chosen, in_turn, show
from models.reproduce import reproduce as put_to_the_test
from models.training.classifier_run import ClassifierRun
from models.training.jobs import Job
from models.training.prior_run import CodeInfo, build_prior
from models.training.runs import load_tokenizer
from models.training.tokenizer_run import TokenizerRun, replace_stage

VALUES = {"a": {"x": [3.0, 2.0]}, "b": {"x": [1.0, 1.5]}, "nan": {"x": [math.nan, 1.0]}}


@pytest.mark.parametrize(
    ("high", "low", "margin", "holds"),
    [
        (("a", "x"), ("b", "x"), 1.25, True),  # gaps 2 and 0.5, their mean 1.25
        (("a", "x"), ("b", "x"), 1.26, False),
        (("b", "x"), ("a", "x"), 0.0, False),
        (("a", "x"), 2.5, 0.0, False),  # on average not below, but for one seed
        (2.0, ("a", "x"), -1.0, True),  # gaps -1 and 0: allowed to fall short by 1
        (2.0, ("a", "x"), -0.9, False),
        (2.0, 2.0, 0.0, True),
        (("nan", "x"), 0.0, 0.0, False),
        (("a", "x"), ("nan", "x"), -9.0, False),
    ],
)
def test_a_check_holds_for_every_seed_and_by_its_margin(
    high: object, low: object, margin: float, holds: bool
) -> None:
    found = judge(Check(says="", high=high, low=low, margin=margin), VALUES, 2)  # type: ignore[arg-type]
    assert found.holds is holds
    assert len(found.gaps) == 2


def a_claim(config: TokenizerRun, *, margin: float = 0.0) -> Claim:
    """Two trainings of a few steps; what is measured of them is what they are."""

    def number(made: Made) -> dict[str, float]:
        tokenizer = load_tokenizer(made.run)
        size = float(tokenizer.quantizer.codebook.shape[1])
        return {"codes": size, "weight": float(next(tokenizer.parameters()).detach().abs().sum())}

    few, many = (
        Train(config=replace(config, quantizer=replace(config.quantizer, num_codes=size))) for size in (32, 64)
    )
    trial = Trial(
        form="As it is.",
        variants=(Variant(name="few", run=few), Variant(name="many | more", run=many, published={"codes": 64})),
        measure=number,
        metrics=(Metric(key="codes", title="codes", digits=0), Metric(key="weight", title="weight")),
        checks=(Check(says="more codes", high=("many | more", "codes"), low=("few", "codes"), margin=margin),),
        chart=Chart(y="codes"),
        minutes=1,
    )
    return Claim(
        name="a-claim", title="A claim", system="None", place="Table 0", says="<b> is escaped.", pocket=trial
    )


@pytest.fixture(scope="module")
def small(tiny_config: TokenizerRun) -> TokenizerRun:
    torch.set_num_threads(1)
    return replace_stage(dataclasses.replace(tiny_config, checkpoint_every=3, val_every=6, val_samples=2), steps=6)


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


@pytest.fixture(scope="module")
def finished(small: TokenizerRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("claims")
    put_to_the_test(a_claim(small), ReproduceConfig(out=out), quiet())
    return out


def test_a_second_call_changes_nothing_and_claims_share_runs(finished: Path, small: TokenizerRun) -> None:
    before = files(finished)
    assert len(list((finished / "runs").iterdir())) == 4  # two variants, two seeds
    result = put_to_the_test(a_claim(small), ReproduceConfig(out=finished), quiet())
    other = dataclasses.replace(a_claim(small), name="another")
    put_to_the_test(other, ReproduceConfig(out=finished), quiet())
    after = files(finished)
    assert set(after) - set(before) == {finished / "results" / "another.json"}
    assert {path: after[path] for path in before} == before
    assert result["holds"] is True
    assert [variant["values"]["codes"] for variant in result["variants"]] == [[32.0, 32.0], [64.0, 64.0]]
    assert result["unequal"] == "5 to 6 bits per token"
    (finished / "results" / "another.json").unlink()


def one_after_the_other(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, None]]:
    """In this process, the last job first; each has something to make until it is done."""
    assert processes == 2
    for job in reversed(jobs):
        assert job.makes()
        yield job, job.call(*job.arguments)
        assert not job.makes()


@pytest.mark.parametrize(
    ("spec", "count"),  # a tenth as many are held out; with images come maps
    [
        ("scenes:length=5,size=8x8", 2 * (5 + 1)),
        ("classes:scenes:length=5,size=8x8", 5 + 1),
        ("scenes:length=3,size=8x8,frames=2", 2 * (3 + 1)),
    ],
)
def test_scenes_are_the_same_files_whoever_draws_them(
    spec: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backwards(jobs: Sequence[Job], processes: int) -> Iterator[None]:
        assert processes == 3
        for job in reversed(jobs):
            yield job.call(*job.arguments)

    def drawings(place: str, folder: Path) -> dict[str, bytes]:
        root = Path(place.removeprefix("maps:").removeprefix("video:").partition("?")[0])
        assert root.parent == folder  # and nothing else is left there
        assert list(folder.iterdir()) == [root]
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.png")}

    monkeypatch.setattr(drawn, "_PART", 2)
    monkeypatch.setattr(drawn, "side_by_side", backwards)
    alone, several = (tmp_path / name for name in ("alone", "several"))
    one = drawings(drawn.rendered(spec, alone), alone)
    other = drawings(drawn.rendered(spec, several, 3), several)
    assert one == other
    assert len(one) == count


def test_several_jobs_give_the_same_and_tell_claims_as_they_get_done(
    finished: Path, small: TokenizerRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "side_by_side", one_after_the_other)
    claim = a_claim(small)
    few = dataclasses.replace(
        claim.pocket,
        variants=claim.pocket.variants[1:],
        checks=(Check(says="many", high=("many | more", "codes"), low=0.0, margin=0.0),),
    )
    half = dataclasses.replace(claim, name="half", pocket=few)
    options = ReproduceConfig(out=tmp_path, jobs=2)
    told = [each.name for each in in_turn([claim, half], options, quiet())]
    assert told == ["half", "a-claim"]  # what the second needs is done before
    assert [each.name for each in in_turn([claim, half], options, quiet())] == ["a-claim", "half"]
    before = files(tmp_path)
    put_to_the_test(claim, options, quiet())
    assert {path: stamp for path, stamp in files(tmp_path).items() if path in before} == before
    ours, theirs = (json.loads((out / "results" / "a-claim.json").read_text()) for out in (tmp_path, finished))
    assert ours["variants"] == theirs["variants"]
    assert {seed: len(minutes) for seed, minutes in ours["trainings"].items()} == {"0": 2, "1": 2}


def test_what_was_killed_ends_with_the_same_numbers(
    finished: Path, small: TokenizerRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, train = [], reproduce.train_tokenizer

    def killed_at_the_third(config: TokenizerRun, **options: object) -> None:
        trained.append(config)
        if len(trained) == 3:
            raise KeyboardInterrupt
        train(config, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(reproduce, "train_tokenizer", killed_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            put_to_the_test(a_claim(small), ReproduceConfig(out=tmp_path), quiet())
    assert not (tmp_path / "results").exists()
    done = files(tmp_path / "measured")
    assert len(done) == 2
    result = put_to_the_test(a_claim(small), ReproduceConfig(out=tmp_path), quiet())
    assert {path: path.stat().st_mtime_ns for path in done} == done
    unbroken = json.loads((finished / "results" / "a-claim.json").read_text())
    assert json.loads(json.dumps(result["variants"])) == unbroken["variants"]


KINDS = ("training", "measuring", "half of .tmp", "half of .partial")


@pytest.mark.parametrize("kinds", [KINDS, pytest.param((), marks=pytest.mark.slow)], ids=["some", "all"])
def test_sigkill_at_any_moment_changes_nothing_in_the_end(kinds: tuple[str, ...], tmp_path: Path) -> None:
    """While training, measuring and writing; by a process that kills itself there, see killed_claims.py."""
    command = [sys.executable, str(Path(__file__).with_name("killed_claims.py")), str(tmp_path), *kinds]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    moments, whole = found.pop("moments"), found.pop("whole")
    assert set(KINDS) <= set(moments)
    assert whole["files"][-1:] == ["results/tiny.json"]
    assert len(whole["files"]) == 3  # two measurements, and no part of a file left over
    assert len(found) == 1 + len(kinds or moments)
    assert {told: ended == whole for told, ended in found.items()} == dict.fromkeys(found, True)
    assert int(list(found)[-1].split()[1]) > 2


def test_what_does_not_hold_is_said_to(finished: Path, small: TokenizerRun, tmp_path: Path) -> None:
    console = quiet()
    result = put_to_the_test(a_claim(small, margin=33.0), ReproduceConfig(out=finished), console)
    show(result, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert result["holds"] is False
    assert "a-claim: DOES NOT HOLD" in text
    assert "by 32" in text
    assert "(published 64)" in text
    page = report.render([result])
    assert 'data-verdict="DOES NOT HOLD"' in page
    assert "0 of 1 claims hold" in page
    assert "&lt;b&gt; is escaped" in page
    assert 'data-metric="codes" value="64.0 64.0"' in page
    (line,) = report.readme_table([result]).splitlines()[2:]
    assert line.endswith("| DOES NOT HOLD |")
    assert "2 seeds" in line
    assert "Not equal: 5 to 6 bits per token." in line
    readme, target = tmp_path / "README.md", tmp_path / "committed"
    readme.write_text(
        "before\n<!-- claims:begin -->\nold\n<!-- claims:end -->\n<!-- minutes:begin -->\n<!-- minutes:end -->\n"
    )
    report.publish(finished / "results", target, readme=readme)
    assert line in readme.read_text()
    assert "old" not in readme.read_text()
    assert json.loads((target / "a-claim.json").read_text()) == json.loads(json.dumps(result))


def test_minutes_count_shared_trainings_once() -> None:
    claims = [
        {"scale": "pocket", "trainings": {"0": {"a": 1.0, "b": 2.0}, "1": {"c": 4.0}}},
        {"scale": "pocket", "trainings": {"0": {"b": 2.0, "d": 5.0}}},
        {"scale": "paper", "trainings": {"0": {"e": 999.0}}},
    ]
    told = report.minutes_told(claims, [{"minutes": 20.0}, {"minutes": 10.0}])
    assert "the 4 trainings of the claims take 12 minutes, those with seed 0 8, and the 2 priors 30" in told
    assert "comes to 19 minutes of training, with all seeds to 21" in told
    assert "claims (2 of 3) take 12" in report.minutes_told([*claims, {"scale": "pocket"}], [])


def test_charts_show_what_is_there() -> None:
    rows = [{"name": "<a>", "values": [1.0, 2.0]}, {"name": "b", "values": [None, 3.0]}]
    metric = dataclasses.asdict(Metric(key="m", title="M", unit="dB"))
    dots = report.chart({"title": "T", "chart": {"metric": metric, "rows": rows}})
    assert dots.count("h0") == 3
    assert "&lt;a&gt;" in dots
    lines = [{"name": "one", "x": [1, 10, 100], "y": [[1.0, 2.0], [2.0, 3.0], [None, 3.0]]}]
    drawn = report.chart({"title": "T", "chart": {"x": "X", "y": "Y", "log": True, "lines": lines}})
    assert drawn.count("L") == 2  # one stretch, and the leader to the name


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (ReproduceConfig(claims=("nope",)), "claims: expected some of lc-utilization, "),
        (ReproduceConfig(), "claims: expected names or --all, got neither"),
        (ReproduceConfig(claims=("lc-utilization",), all=True), "got both"),
    ],
)
def test_wrong_names_are_one_line(options: ReproduceConfig, says: str) -> None:
    with pytest.raises(UserError) as raised:
        chosen(options)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def all_trials() -> list[tuple[str, Trial]]:
    return [
        (f"{name}-{scale}", trial)
        for name, claim in CLAIMS.items()
        for scale, trial in (("pocket", claim.pocket), ("paper", claim.paper))
        if trial is not None
    ]


@pytest.mark.parametrize("trial", [trial for _, trial in all_trials()], ids=[name for name, _ in all_trials()])
def test_claims_are_consistent(trial: Trial) -> None:
    names = [variant.name for variant in trial.variants]
    assert len(set(names)) == len(names)
    keys = {metric.key for metric in trial.metrics}
    assert trial.checks
    assert len({run_key(variant.run) for variant in trial.variants}) == len(names)
    for check in trial.checks:
        for side in (check.high, check.low):
            assert isinstance(side, float) or side[0] in names
    points = [point for line in trial.chart.lines for point in line.points]
    assert trial.chart.y in keys or points
    assert {variant for _, variant, _ in points} <= set(names)
    assert len(trial.chart.lines) <= 5  # colours
    for variant in trial.variants:
        size_of(variant.run)
        assert set(variant.published) <= keys
        seeded = with_seed(variant.run, 7)
        assert seeded.config.seed == 7
        assert run_key(seeded) != run_key(variant.run)


def test_sizes_that_differ_are_told() -> None:
    masked = CLAIMS["nested-masking"].pocket.variants
    assert unequal([size_of(variant.run) for variant in masked]) == ""
    groups = CLAIMS["mgvq-groups"].pocket.variants
    assert unequal([size_of(variant.run) for variant in groups]) == "10 to 56 bits per token"


def test_priors_of_claims_build() -> None:
    built = set()
    for _, trial in all_trials():
        for variant in trial.variants:
            run = variant.run
            if not isinstance(run, Prior) or isinstance(run.config, ClassifierRun) or run_key(run) in built:
                continue
            built.add(run_key(run))
            tokenizer = run.codes.tokenizer.config
            assert isinstance(tokenizer, TokenizerRun)
            quantizer = tokenizer.parts(len(tokenizer.stages) - 1)[1]
            latents, frames = run.config.of_latents, (4,) if run.config.prior.kind == "video" else ()
            groups = (quantizer.groups,) if quantizer.groups > 1 else ()
            info = CodeInfo(
                tokenizer="",
                num_codes=quantizer.num_codes,
                groups=quantizer.groups,
                code_dim=quantizer.code_dim,
                shape=(quantizer.code_dim, 8, 8) if latents else (*frames, 8, 8, *groups),
            )
            with torch.device("meta"):
                build_prior(replace(run.config, codes=info))
    assert built


def test_the_committed_results_are_what_the_readme_shows() -> None:
    results = report.read_results(report.RESULTS, tuple(CLAIMS))
    assert read_block(report.README, report.BLOCK) == report.readme_table(results)
    priors = json.loads(report.PRIORS.read_text())
    assert read_block(report.README, report.MINUTES) == report.minutes_told(results, priors)
    for result in results:
        claim = CLAIMS[result["claim"]]
        trial = claim.trial(result["scale"])
        assert trial is not None
        assert result["holds"] is all(check["holds"] for check in result["checks"])
        # what was asked for is what the claim asks for now
        assert [(check["says"], check["margin"]) for check in result["checks"]] == [
            (check.says, check.margin) for check in trial.checks
        ]
        assert [variant["name"] for variant in result["variants"]] == [variant.name for variant in trial.variants]
        values = {variant["name"]: variant["values"] for variant in result["variants"]}
        for check, found in zip(trial.checks, result["checks"], strict=True):
            assert list(judge(check, values, len(result["seeds"])).gaps) == pytest.approx(found["gaps"])
