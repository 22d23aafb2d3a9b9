"""What commands of the bench say of arguments that cannot be: one line, nothing run, nothing written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import compare, run


def told(main: Callable[[Sequence[str]], Any], capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(words)
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert len(line) < 300
    return line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threads", "0"], "--threads: expected an integer from 1 to 1024, got '0'"),
        (["--threads", "-1"], "--threads"),
        (["--threads", "1000000"], "--threads"),
        (["--threads", "two"], "--threads: expected an integer from 1 to 1024, got 'two'"),
        (["--threads", "9" * 5000], "--threads"),
        (["--rounds", "0"], "--rounds: expected an integer from 1 to 1000, got '0'"),
        (["--seed", str(1 << 64)], "--seed: expected an integer from 0 to 4294967295"),
        (["--seed", "-1"], "--seed"),
        (["--min-seconds", "nan"], "--min-seconds: expected a number of seconds, at least 0, got 'nan'"),
        (["--min-seconds", "inf"], "--min-seconds"),
        (["--min-seconds", "-1"], "--min-seconds"),
        (["--min-seconds", "long"], "--min-seconds"),
        (["--json", "."], "--json: expected a file in an existing folder, got '.'"),
        (["--json", "taken"], "--json: expected a file in an existing folder, got 'taken'"),
        (["--json", "missing/result.json"], "--json: expected a file in an existing folder"),
        (["--json", ""], "--json"),
        (["--json", "\0"], "--json"),
        (["--json", 300 * "x"], "--json"),
        (["--op", "sorting"], "--op: invalid choice: 'sorting'"),
        (["--case", "no such case"], "--case: got 'no such case', expected part of one of"),
        (["--nothing"], "unrecognized arguments: --nothing"),
    ],
)
def test_of_a_run(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").mkdir()
    assert message in told(run.main, capsys, "--op", "nearest_code", "--smoke", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has CUDA")
def test_of_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--device" in told(run.main, capsys, "--op", "nearest_code", "--smoke", "--device", "cuda")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"null", b"[]", 99999 * b"[", b'{"schema": 3}'])
def test_of_results_that_are_none(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "result.json").write_bytes(content)
    assert "result.json: expected" in told(compare.main, capsys, *2 * [str(tmp_path / "result.json")])
    assert "nothing.json" in told(compare.main, capsys, *2 * [str(tmp_path / "nothing.json")])
