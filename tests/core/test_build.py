"""The build switch: what it names is built or refused, in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def setup(mode: str, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"VQKERNELS_BUILD": mode} | variables
    return subprocess.run(
        [sys.executable, "setup.py", *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("mode", "message"),
    [("gpu", "expected auto, cpu, cuda or none, got 'gpu'"), ("cuda", "expected nvcc on PATH, got none")],
)
def test_modes_that_cannot_be_built_are_refused(mode: str, message: str) -> None:
    result = setup(mode, "--version", PATH="")
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_version_is_the_packages() -> None:
    import vqkernels

    assert setup("none", "--version").stdout.strip().splitlines()[-1] == vqkernels.__version__


def test_kernels_of_an_instruction_set_are_asked_for_where_the_processor_has_it() -> None:
    """A getter is compiled with the instructions it is about: it may be the answer, and no part of the question."""
    narrow = ("integers_avx2", "avxvnni", "avx512vnni", "amx", "amxint8", "neondot")
    getter = re.compile(r"\b(scan|draw|soft)_(int\d+_)?(avx2|avx512|neon|avxvnni|avx512vnni|amx)(\(\)|\},$)(?! \{)")
    lines = [
        line
        for path in sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
        for line in path.read_text().splitlines()
        # those that begin with the kernels of AVX2 or AVX-512 come with it
        if getter.search(line) and not path.stem.endswith(narrow)
    ]
    assert len(lines) == 18
    # an entry of the table that asks first, or an answer
    assert [line for line in lines if getter.search(re.sub(r"^ +\{Isa::.*\},$|return \w+\(\);$", "", line))] == []
