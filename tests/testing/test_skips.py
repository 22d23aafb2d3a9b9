"""``--complete``, as `make test` gives it. Oracle: what pytest says of a module and three tests that are skipped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SKIPPED = """
import pytest
from needs import import_library

def test_of_a_library():
    import_library("no_such_library.part")

@pytest.mark.skipif(True, reason="the machine has no such processor")
def test_of_a_processor():
    raise AssertionError

@pytest.mark.parametrize("nothing", [])
def test_of_nothing(nothing):
    raise AssertionError
"""


@pytest.mark.parametrize(("options", "said"), [((), "4 skipped"), (("--complete",), "1 failed, 1 skipped, 2 errors")])
def test_only_the_machine_excuses_a_skip(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    (tmp_path / "test_skipped.py").write_text(SKIPPED)
    (tmp_path / "test_module.py").write_text("from needs import import_library\nimport_library('no_such_library')\n")
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-q", "-rs"]
    command += ["--continue-on-collection-errors", *options, str(tmp_path)]
    environment = {"PYTHONPATH": f"{TESTS}:{TESTS.parent}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    *_, summary = done.stdout.strip().splitlines()
    assert summary.startswith(said), done.stdout + done.stderr
    assert (done.returncode == pytest.ExitCode.TESTS_FAILED) == bool(options)
    assert "no_such_library is not installed" in done.stdout
