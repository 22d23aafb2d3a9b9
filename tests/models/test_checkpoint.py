"""Checkpoints are whole or absent, and reading one runs nothing. Oracle: what was saved."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from models.config_json import to_json
from models.errors import UserError
from models.tokenizers import build_tokenizer
from models.training.checkpoint import (
    checkpoint_steps,
    find_checkpoint,
    read_state,
    read_weights,
    save_checkpoint,
    save_config,
)
from models.training.runs import load_tokenizer
from models.training.tokenizer_run import TokenizerRun

WEIGHTS = {"weight": torch.arange(6.0).reshape(2, 3)}
STATE = {"optimizer": {"lr": 0.5, "moment": torch.ones(3)}}


def test_what_is_saved_is_read_back_and_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (0, 5, 1_000_000):
        save_checkpoint(tmp_path, step, {"weight": WEIGHTS["weight"] + step}, STATE)
    assert checkpoint_steps(tmp_path) == [5, 1_000_000]
    assert find_checkpoint(tmp_path).name == "step_1000000"
    assert torch.equal(read_weights(find_checkpoint(tmp_path, 5))["weight"], WEIGHTS["weight"] + 5)
    state = read_state(find_checkpoint(tmp_path))
    assert state["optimizer"]["lr"] == 0.5
    assert torch.equal(state["optimizer"]["moment"], torch.ones(3))


def test_a_missing_checkpoint_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        find_checkpoint(tmp_path)
    save_checkpoint(tmp_path, 5, WEIGHTS, STATE)
    with pytest.raises(UserError, match=r"expected a checkpoint at one of the steps \[5\], got 6"):
        find_checkpoint(tmp_path, 6)
    with pytest.raises(UserError, match=r"not a run folder, config.json is missing"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("limit", [0, 50, 700], ids=["at once", "in the weights", "in the state"])
def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, limit: int, small_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    save_checkpoint(tmp_path, 1, WEIGHTS, STATE)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert 50 < (find_checkpoint(tmp_path) / "model.safetensors").stat().st_size < 700
    assert (find_checkpoint(tmp_path) / "state.pt").stat().st_size > 700
    with small_disk(limit), pytest.raises(UserError, match=r"step_000002: disk full") as caught:
        save_checkpoint(tmp_path, 2, WEIGHTS, STATE)
    assert "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    save_checkpoint(tmp_path, 2, WEIGHTS, STATE)  # room again
    assert checkpoint_steps(tmp_path) == [1, 2]


def test_a_writer_killed_half_way_is_not_seen_and_not_in_the_way(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, WEIGHTS, STATE)
    partial = tmp_path / "checkpoints" / ".step_000002.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    assert checkpoint_steps(tmp_path) == [1]
    save_checkpoint(tmp_path, 2, WEIGHTS, STATE)
    assert torch.equal(read_weights(find_checkpoint(tmp_path, 2))["weight"], WEIGHTS["weight"])
    assert not partial.exists()


class Hostile:
    """Unpickling this leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._trace),)


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare pickle", "torch file"])
def test_a_hostile_state_is_refused_and_not_run(tmp_path: Path, wrapped: bool) -> None:
    save_checkpoint(tmp_path, 1, WEIGHTS, STATE)
    trace = tmp_path / "ran"
    file = find_checkpoint(tmp_path) / "state.pt"
    if wrapped:
        torch.save({"optimizer": Hostile(trace)}, file)
    else:
        file.write_bytes(pickle.dumps(Hostile(trace)))
    with pytest.raises(UserError, match=r"state.pt: missing, truncated or not a checkpoint") as caught:
        read_state(file.parent)
    assert "\n" not in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "noise"])
def test_a_damaged_checkpoint_is_an_error_of_one_line(tmp_path: Path, name: str, damage: str) -> None:
    save_checkpoint(tmp_path, 1, WEIGHTS, STATE)
    file = find_checkpoint(tmp_path) / name
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        replacement = {"empty": b"", "cut": content[: len(content) // 2], "noise": bytes(range(256)) * 4}
        file.write_bytes(replacement[damage])
    read = read_weights if name == "model.safetensors" else read_state
    with pytest.raises(UserError, match=f"{name}: missing, truncated or not a checkpoint") as caught:
        read(file.parent)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"weights": 1}])
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, content: object) -> None:
    save_checkpoint(tmp_path, 1, WEIGHTS, STATE)
    torch.save(content, find_checkpoint(tmp_path) / "state.pt")
    with pytest.raises(UserError, match="holds no optimizer state"):
        read_state(find_checkpoint(tmp_path))


def test_weights_of_another_network_are_an_error_of_one_line(tmp_path: Path, tiny_config: TokenizerRun) -> None:
    tokenizer = build_tokenizer(tiny_config.network, tiny_config.quantizer)
    save_config(tmp_path, tiny_config)
    save_checkpoint(tmp_path, 1, tokenizer.state_dict(), STATE)
    loaded = load_tokenizer(tmp_path)
    assert not loaded.training
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    save_checkpoint(tmp_path, 2, WEIGHTS, STATE)
    with pytest.raises(UserError, match="weights do not fit the config") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_config_that_is_none_is_an_error_of_one_line(tmp_path: Path, tiny_config: TokenizerRun) -> None:
    save_checkpoint(tmp_path, 1, WEIGHTS, STATE)
    for content in ("", "[]", '{"recipe": "x"}', to_json(tiny_config).replace('"patch"', '"hatch"')):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"config.json: not a training config") as caught:
            load_tokenizer(tmp_path)
        assert "\n" not in str(caught.value)
