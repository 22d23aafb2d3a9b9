"""The README tells the truth: its commands exist. In all documents, Python runs, links and tests named exist."""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from vqkernels.info import backend_table

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


class Block(NamedTuple):
    """A fenced block of a document."""

    document: Path
    line: int
    language: str
    text: str


DOCUMENTS = [
    path
    for path in sorted(ROOT.rglob("*.md"))
    if not any(part.startswith(".") or part in ("build", "runs", "site") for part in path.relative_to(ROOT).parts)
]
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


@functools.cache
def existing_tests() -> set[str]:
    """Functions and modules."""
    modules = list((ROOT / "tests").rglob("test_*.py"))
    functions = re.findall(r"^def (test_\w+)", "\n".join(path.read_text() for path in modules), re.MULTILINE)
    return {*functions, *(path.stem for path in modules)}


def blocks(document: Path) -> list[Block]:
    text = document.read_text()
    fences = re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(document, text[: fence.start()].count("\n") + 1, fence[1], fence[2]) for fence in fences]


PYTHON = [block for document in DOCUMENTS for block in blocks(document) if block.language == "python"]
SHELL = [block for block in blocks(README) if block.language in {"", "sh", "bash", "shell", "console"}]


def each(chosen: list[Block]) -> pytest.MarkDecorator:
    names = [f"{block.document.relative_to(ROOT)} line {block.line}" for block in chosen]
    return pytest.mark.parametrize("block", chosen, ids=names)


def test_there_is_a_readme() -> None:
    assert README.exists(), "README.md is missing: the first page of the project, with snippets for these tests"
    assert any(block.document == README for block in PYTHON), "README.md shows no python block"
    assert SHELL, "README.md shows no command"


@each(PYTHON)
def test_python_runs(block: Block, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    source = "\n" * block.line + block.text  # tracebacks show the lines of the document
    exec(compile(source, str(block.document), "exec"), {"__name__": "readme"})


def make_targets() -> set[str]:
    makefile = ROOT / "Makefile"
    text = makefile.read_text() if makefile.exists() else ""
    return set(re.findall(r"^([\w-]+):(?!=)", text, flags=re.MULTILINE))


def missing(text: str) -> list[str]:
    """Make targets and Python modules named in a text that do not exist."""
    targets = re.findall(r"\bmake ([a-z][\w-]*)", text)
    modules = re.findall(r"\bpython3? -m ([\w.]+)", text)
    sys.path.insert(0, str(ROOT))
    try:
        unknown = [module for module in modules if importlib.util.find_spec(module) is None]
    finally:
        sys.path.remove(str(ROOT))
    return [f"make {target}" for target in targets if target not in make_targets()] + unknown


@each(SHELL)
def test_commands_exist(block: Block) -> None:
    assert missing(block.text) == []


def test_commands_in_the_text_exist() -> None:
    assert README.exists(), "README.md is missing"
    prose = re.sub(r"^```.*?^```$", "", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", prose)
    assert missing("\n".join(inline)) == []


@each_document
def test_links_and_pictures_exist(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
    local = [target for target in targets if not target.startswith(("http://", "https://", "mailto:"))]
    assert [target for target in local if not (document.parent / target).exists()] == []


@each_document
def test_tests_that_are_named_exist(document: Path) -> None:
    named = set(re.findall(r"\btest_\w+", document.read_text()))
    assert named <= existing_tests(), named - existing_tests()


def test_backend_table_is_the_registry() -> None:
    assert README.exists(), "README.md is missing"
    told = README.read_text().partition("<!-- backends:begin -->")[2].partition("<!-- backends:end -->")[0]
    assert told.strip() == backend_table(), "write the output of `python -m vqkernels.info --table` into README.md"


def test_a_missing_command_is_found() -> None:
    text = "make nothing\nmake test\npython -m bench.no_such_module\npython -m pytest tests"
    assert missing(text) == ["make nothing", "bench.no_such_module"]
