"""The way of the work, as the README of models/ shows it: its commands run, in their order, at a tiny size."""

from __future__ import annotations

import os
import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch

from models import recipes

README = Path(__file__).parents[2] / "models" / "README.md"
# what makes each command take seconds
TINY = {
    "models.train_tokenizer": "--num-codes 32 --steps 2 --batch-size 2 --perceptual-weight 0 --disc-start None "
    "--features-size 64 --features-layer expand3 --image-size 32 --val-samples 2 --no-progress",
    "models.evaluate": "",
    "models.extract_codes": "--batch-size 4 --shard-size 4",
    "models.train_prior": "--steps 2 --batch-size 2 --val-samples 1 --no-progress",
    "models.sample": "--count 2 --batch-size 2",
}


def way() -> list[list[str]]:
    block = re.search(r"^```\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    return [shlex.split(line, comments=True) for line in block[1].splitlines()]


def test_the_commands_of_the_way_run(photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    lines = way()
    assert [line[2] for line in lines] == list(TINY)
    for line in lines:
        assert line[:2] == ["python", "-m"]
        module, arguments = line[2], line[3:]
        small = ["--data", str(photo_folder)] if module == "models.train_tokenizer" else []
        monkeypatch.setattr("sys.argv", [module, *arguments, *shlex.split(TINY[module]), *small])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__")
        assert ended.value.code == 0, line
    assert list((tmp_path / "runs" / "samples").rglob("*.png"))
    assert os.listdir(tmp_path) == ["runs"]


def test_every_recipe_is_named() -> None:
    text = README.read_text()
    unnamed = [
        name
        for name in (*recipes.TOKENIZERS, *recipes.CONCEPTS, *recipes.PRIORS, *recipes.CLASSIFIERS)
        if f"`{name}`" not in text
    ]
    assert unnamed == []
