"""Command lines and files that cannot be right: one line that says so, nothing left behind, nothing that hangs."""

from __future__ import annotations

import dataclasses
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from code_folders import write_codes
from hostile_commands import CASES
from hostile_files import HEADERS, OTHER_NUMBERS, cut, header, pipe, remove
from PIL import Image

from models import (
    command,
    demo,
    evaluate,
    extract_codes,
    extract_features,
    import_checkpoint,
    replace_tokens,
    sample,
    train_classifier,
    train_prior,
    train_tokenizer,
    visualize,
)
from models.config_json import Flat
from models.errors import UserError
from models.networks.gpt import GPTConfig
from models.priors.autoregressive import AutoregressiveConfig
from models.training.config import OptimizerConfig, StageConfig
from models.training.prior_data import read_codebook, write_codebook
from models.training.prior_run import PriorRun


def tiny_prior(data: str) -> PriorRun:
    return PriorRun(
        recipe="tiny_prior",
        data=data,
        prior=AutoregressiveConfig(network=GPTConfig(layers=1, heads=2, width=16)),
        stage=StageConfig(steps=1, batch_size=4, optimizer=OptimizerConfig(schedule="constant")),
    )


SECONDS = 120  # after which a command hangs, on a machine that is busy too


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_config: Any) -> Path:
    """Images, a tokenizer, codes, a prior, as the commands leave them."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        images = Path("images")
        images.mkdir()
        for number in range(12):
            pixels = np.random.default_rng(number).integers(256, size=(24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(images / f"{number:02d}.png")
        small = dataclasses.replace(tiny_config, data="images", val_samples=1)
        for codebook in ("learned", "frozen"):
            changes: dict[str, Any] = {"codebook": codebook, "num_codes": 8, "features": "random"}
            config = dataclasses.replace(small, quantizer=dataclasses.replace(small.quantizer, **changes))
            stage = dataclasses.replace(config.stage, steps=1, batch_size=2, image_size=16)
            config = dataclasses.replace(config, stage=stage, recipe=codebook)
            RECIPES[codebook] = config
            if codebook == "learned":
                train_tokenizer.train(config, out="run", progress=False)
        extract_codes.extract(
            Path("run"), Path("codes"), image_size=16, batch_size=4, shard_size=16, samples=None, progress=False
        )
        write_codes(Path("other"), shape=(2, 2), counts=(6, 4))
        train_prior.train(tiny_prior("codes:codes"), out="prior", progress=False)
    return folder


RECIPES: dict[str, Any] = {}


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy to damage, which is where commands run; a command that hangs is stopped."""
    folder = tmp_path / "here"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    tokenizers = tyro.extras.subcommand_type_from_defaults({**RECIPES, "third": RECIPES["learned"]})
    priors = {"tiny_prior": tiny_prior("codes:codes"), "second": tiny_prior("codes:codes")}
    monkeypatch.setattr(train_tokenizer, "Recipe", Flat[tokenizers])
    monkeypatch.setattr(train_prior, "Recipe", Flat[tyro.extras.subcommand_type_from_defaults(priors)])

    def hangs(*_: object) -> None:
        raise AssertionError(f"the command hangs for {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    yield folder
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def started(name: str, arguments: list[str]) -> int:
    """The exit code of a command."""
    if name in WHOLE:
        main = WHOLE[name].main
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [name, *arguments])
            return ended(lambda: command.run(main))
    main = COMMANDS[name].main
    return ended(lambda: command.run(lambda: tyro.cli(main, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))))


def ended(call: Callable[[], int]) -> int:
    try:
        return call()
    except SystemExit as end:
        return -1 if end.code is None else int(end.code)


# whose main() is all of it
WHOLE: dict[str, Any] = {
    "demo": demo,
    "train_classifier": train_classifier,
    "train_prior": train_prior,
    "train_tokenizer": train_tokenizer,
}
COMMANDS: dict[str, Any] = {
    "evaluate": evaluate,
    "extract_codes": extract_codes,
    "extract_features": extract_features,
    "import_checkpoint": import_checkpoint,
    "replace_tokens": replace_tokens,
    "sample": sample,
    "visualize": visualize,
}


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


_RARE = re.compile(
    r"(config|manifest|asked|settings) (list|text|empty|bytes|cut)$"
    r"|^(evaluate|extract_codes).* null$"
    r"|^evaluate: weights of"
    r"|^train_prior: shard of (an offset below|a shape|a type)"
    r"|^(sample|visualize|replace_tokens|evaluate|extract_codes) .*(workers|seed|batch-size|steps|save-every)"
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if _RARE.search(name) else ()) for name in CASES]
)
def test_one_line_and_nothing_left(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    if case.damage is not None:
        case.damage(here)
    before = contents(here)
    command_name, *arguments = case.arguments.split()
    code = started(command_name, arguments)
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    if code == 2:
        # what cannot be parsed is told by the parser, in a box
        assert re.search(rf"\b{case.words}\b", output.out + output.err)
    else:
        assert code == 1, output
        (line,) = output.err.strip().splitlines()
        assert line.startswith("error: ")
        assert case.words in line
        assert len(line) < 400
        assert output.out == ""
    after = contents(here)
    assert set(after) == set(before)
    assert after == before


CODEBOOKS: dict[str, Callable[[Path], object]] = {
    **{what: header("codebook.safetensors", change) for what, change in HEADERS.items()},
    "of integers": header("codebook.safetensors", OTHER_NUMBERS),
    "of one group without its dimension": lambda here: write_codebook(here, np.ones((8, 2), np.float32)),
    "cut": cut("codebook.safetensors", 60),
    "a pipe": pipe("codebook.safetensors"),
    "gone": remove("codebook.safetensors"),
}


@pytest.mark.parametrize("damage", CODEBOOKS)
def test_a_codebook_is_one_or_is_told_of(damage: str, tmp_path: Path) -> None:
    codebook = np.random.default_rng(0).normal(size=(2, 8, 3)).astype(np.float32)
    write_codebook(tmp_path, codebook)
    assert np.array_equal(read_codebook(f"codes:{tmp_path}"), codebook)
    CODEBOOKS[damage](tmp_path)
    with pytest.raises(UserError, match=r"codebook\.safetensors: ") as told:
        read_codebook(f"codes:{tmp_path}")
    assert "\n" not in str(told.value)
