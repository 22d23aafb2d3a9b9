"""What ``python -m vqkernels.kmeans`` says when it cannot: one line, whatever the files hold."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vqkernels.kmeans.command import main
from vqkernels.kmeans.files import save_safetensors
from vqkernels.kmeans.source import find_files

FINE = np.random.default_rng(0).standard_normal((50, 5)).astype(np.float32)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows").mkdir()
    np.save("rows/fine.npy", FINE)


def told(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    """The one line that a call without success writes."""
    try:
        code = main([*map(str, words), "--quiet"])
    except SystemExit as stop:  # from argparse
        code = stop.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert len(line) < 300
    return line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": "nowhere.npy"}, "nowhere.npy"),
        ({"features": "empty"}, "expected .npy or .safetensors files"),
        ({"features": "rows.txt"}, "expected a folder or a file ending in"),
        ({"features": "rows/\0.npy"}, "null"),
        ({"features": 400 * "x" + ".npy"}, "File name too long"),
        ({"--k": "51"}, "num_clusters: expected at most the 50 usable rows"),
        ({"--k": "0"}, "num_clusters: expected an integer in [1, 2^31), got 0"),
        ({"--k": "1" + 40 * "0"}, "num_clusters: expected an integer in [1, 2^31), got an integer of 133 bits"),
        ({"--k": "some"}, "argument --k: invalid int value: 'some'"),
        ({"--tol": "nan"}, "tol: expected a number in [0, 3.40282e+38], got nan"),
        ({"--max-iter": "-1"}, "max_iter: expected an integer in [0, 2^63), got -1"),
        ({"--metric": "dot"}, "argument --metric: invalid choice: 'dot'"),
        ({"--nothing": None}, "unrecognized arguments: --nothing"),
        ({"--seed": str(1 << 64)}, "seed: expected an integer in [-2^63, 2^63)"),
        ({"--seed": str(1 << 63)}, "seed: expected an integer in [-2^63, 2^63)"),
        ({"--seed": str(-(1 << 63) - 1)}, "seed: expected an integer in [-2^63, 2^63)"),
        ({"--out": "codes.pt"}, "--out: expected a name ending in .npy or .safetensors"),
        ({"--out": "missing/codes.npy"}, "--out: expected a file in an existing folder, got 'missing/codes.npy'"),
        ({"--out": "taken.npy"}, "--out: expected a file in an existing folder, got 'taken.npy'"),
    ],
)
def test_of_arguments(change: dict[str, str | None], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("empty", "taken.npy"):
        Path(folder).mkdir()
    options = {"features": "rows", "--k": "5", "--out": "codes.npy", **change}
    place = options.pop("features")
    assert message in told(
        capsys, place, *(word for option in options.items() for word in option if word is not None)
    )
    assert not list(Path().glob("codes*"))


@pytest.mark.parametrize("seed", [-(1 << 63), (1 << 63) - 1])
@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_the_widest_seeds_are_taken(seed: int, init: str) -> None:
    assert main(["rows", "--k", "5", "--out", "codes.npy", "--seed", str(seed), "--init", init, "--quiet"]) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has CUDA")
def test_cuda_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    line = told(capsys, "rows", "--k", 5, "--out", "codes.npy", "--device", "cuda")
    assert "--device: expected cpu where torch finds no CUDA device, got cuda" in line


def test_processes_that_are_not_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "RANK" in told(capsys, "rows", "--k", 5, "--out", "codes.npy")


def npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + FINE.tobytes()


def safetensors(entry: object) -> bytes:
    header = json.dumps({"rows": entry}).encode()
    return len(header).to_bytes(8, "little") + header + FINE.tobytes()


def described(**change: object) -> bytes:
    return safetensors({"dtype": "F32", "shape": [50, 5], "data_offsets": [0, 1000], **change})


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (50, 5), }"
DAMAGED: dict[str, tuple[str, bytes, str]] = {
    "nothing": ("npy", b"", "begins like none"),
    "cut in its length": ("npy", npy(GOOD)[:9], "not a readable .npy file"),
    "cut in its header": ("npy", npy(GOOD)[:40], "a header of 60 bytes, where 30 are left"),
    "cut in its numbers": ("npy", npy(GOOD)[:-1], "expected 1070 bytes for shape [50, 5], got 1069"),
    "brackets": ("npy", npy("(" * 60), "no header that says descr and fortran_order and shape"),
    "a number of rows below zero": ("npy", npy(GOOD.replace("50", "-5")), "no header that says shape"),
    "many rows": ("npy", npy(GOOD.replace("50", 30 * "9")), "expected"),
    "a number of thousands of digits": ("npy", npy(GOOD.replace("50", 5000 * "9")), "not a readable .npy file"),
    "a shape of thousands": ("npy", npy(GOOD.replace("50", 5000 * "9,")), "expected rows [N, D], got shape"),
    "one dimension": ("npy", npy(GOOD.replace("50, 5", "250,")), "expected rows [N, D], got shape [250]"),
    "rows of nothing": ("npy", npy(GOOD.replace("50, 5", "50, 0")), "expected rows [N, D], got shape [50, 0]"),
    "texts": ("npy", npy(GOOD.replace("<f4", "<U4")), "numbers of type '<U4'"),
    "objects": ("npy", npy(GOOD.replace("<f4", "|O")), "numbers of type '|O'"),
    "fields": ("npy", npy(GOOD.replace("'<f4'", "[('a', '<f4')]")), "no header that says descr"),
    "whole numbers": ("npy", npy(GOOD.replace("<f4", "<i4")), "numbers of type '<i4'"),
    "a later format": ("npy", npy(GOOD).replace(b"NUMPY\x01", b"NUMPY\x09"), "begins like none"),
    "no length": ("safetensors", b"\x00\x01", "not a readable .safetensors file"),
    "a long header": ("safetensors", b"\xff" * 20, "where 12 are left"),
    "no object": ("safetensors", safetensors([])[:8].replace(b"\x0c", b"\x02") + b"[]", "no object"),
    "deep": ("safetensors", (99999).to_bytes(8, "little") + b"[" * 99999, "nested too deep"),
    "no tensor": ("safetensors", safetensors([1]), "numbers of type None"),
    "offsets of another shape": ("safetensors", described(shape=[40, 5]), "does not fill the bytes 0 to 1000"),
    "offsets below zero": ("safetensors", described(data_offsets=[-1000, 0]), "offsets [-1000, 0] are none"),
    "three offsets": ("safetensors", described(data_offsets=[0, 1, 2]), "offsets [0, 1, 2] are none"),
    "offsets of text": ("safetensors", described(data_offsets="01"), "offsets 01 are none"),
    "offsets beyond the end": ("safetensors", described(data_offsets=[1000, 2000]), "bytes for shape [50, 5]"),
    "a shape of halves": ("safetensors", described(shape=[0.5, 500]), "shape [0.5, 500]"),
    "a shape of truth": ("safetensors", described(shape=[True, 250]), "shape [True, 250]"),
    "integers": ("safetensors", described(dtype="I64"), "numbers of type 'I64'"),
    "a type of a list": ("safetensors", described(dtype=["F32"]), "numbers of type ['F32']"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_of_damaged_files(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    kind, content, message = DAMAGED[case]
    path = Path(f"rows/damaged.{kind}")
    path.write_bytes(content)
    line = told(capsys, "rows", "--k", 5, "--out", "codes.npy")
    assert str(path) in line
    assert message in line


def test_of_a_tensor_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    save_safetensors(Path("two.safetensors"), {"a": torch.zeros(9, 2), "b": torch.zeros(9, 2)}, {})
    line = told(capsys, "two.safetensors", "--k", 5, "--out", "codes.npy", "--key", "c")
    assert "it holds no tensor 'c', but a, b" in line


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_bytes_changed_at_random_are_read_or_refused(suffix: str) -> None:
    path = Path(f"rows/fine.{suffix}")
    if suffix == "safetensors":
        save_safetensors(path, {"rows": torch.from_numpy(FINE)}, {"made": "by hand"})
    whole = path.read_bytes()
    header = len(whole) - FINE.nbytes
    draw, refused = random.Random(0), 0
    for _ in range(1000):
        changed = bytearray(whole)
        for _ in range(draw.choice([1, 1, 3])):
            changed[draw.randrange(header)] = draw.randrange(256)
        path.write_bytes(changed[: draw.choice([None, None, draw.randrange(len(whole))])])
        try:
            (file,) = find_files(path)
        except ValueError:
            refused += 1
        else:
            assert file.read(0, file.rows).shape == (file.rows, file.dim)
    assert refused > 300


@pytest.mark.parametrize("place", ["pipe.npy", "folder"])
def test_a_pipe_does_not_hang(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    os.mkfifo("folder/pipe.npy" if place == "folder" else place)
    line = told(capsys, place, "--k", 5, "--out", "codes.npy")
    assert "pipe.npy: expected a regular file" in line


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e30, 1e300])
def test_of_rows_too_large_to_tell_apart(dtype: Any, size: float, capsys: pytest.CaptureFixture[str]) -> None:
    with np.errstate(over="ignore"):
        np.save("rows/fine.npy", (FINE * size).astype(dtype))
    assert "num_clusters: expected at most the 0 usable rows" in told(capsys, "rows", "--k", 5, "--out", "codes.npy")


def state(**change: object) -> dict[str, str]:
    run = {"k": 5, "metric": "l2", "init": "k-means++", "seed": 0, "tol": 1e-4, "rows": 50, "dim": 5}
    return {"state": json.dumps({"history": [1.0], "spread": 1.0, "settled": False, "run": run, **change})}


def write(centroids: torch.Tensor, metadata: dict[str, str]) -> Callable[[Path], None]:
    return lambda path: save_safetensors(path, {"centroids": centroids}, metadata)


CHECKPOINTS: dict[str, Callable[[Path], Any]] = {
    "junk": lambda path: path.write_bytes(b"junk"),
    "nothing": lambda path: path.write_bytes(b""),
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "no state": write(torch.zeros(5, 5), {}),
    "a state that is no text": write(torch.zeros(5, 5), {"state": 3}),  # type: ignore[dict-item]
    "a state that is no object": write(torch.zeros(5, 5), {"state": "[]"}),
    "a deep state": write(torch.zeros(5, 5), {"state": 99999 * "["}),
    "a state cut off": write(torch.zeros(5, 5), {"state": state()["state"][:-9]}),
    "no history": write(torch.zeros(5, 5), state(history=None)),
    "a history of texts": write(torch.zeros(5, 5), state(history=["1"])),
    "a spread of text": write(torch.zeros(5, 5), state(spread="1")),
    "settled by number": write(torch.zeros(5, 5), state(settled=3)),
    "no run": write(torch.zeros(5, 5), state(run=None)),
    "an empty run": write(torch.zeros(5, 5), state(run={})),
    "centroids of another shape": write(torch.zeros(5, 4), state()),
    "centroids that are not finite": write(torch.full((5, 5), torch.nan), state()),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_of_damaged_checkpoints(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    CHECKPOINTS[case](Path("codes.npy.checkpoint"))
    line = told(capsys, "rows", "--k", 5, "--out", "codes.npy", "--resume")
    assert "codes.npy.checkpoint: " in line
    assert "go on with --resume" in told(capsys, "rows", "--k", 5, "--out", "codes.npy")


def test_a_checkpoint_that_is_whole_is_taken() -> None:
    write(torch.from_numpy(FINE[:5]), state())(Path("codes.npy.checkpoint"))
    assert main(["rows", "--k", "5", "--out", "codes.npy", "--resume", "--quiet"]) == 0
    assert json.loads(Path("codes.npy.json").read_text())["history"][0] == 1.0
