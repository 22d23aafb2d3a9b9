"""Documents tell the truth: Python runs; links, tests and commands named exist; the commands' options are taken."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import inspect
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro
from documents import Block, blocks

from vqkernels.info import backend_table

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


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


PYTHON = [block for document in DOCUMENTS for block in blocks(document) if block.language == "python"]
SHELL = [
    block
    for document in DOCUMENTS
    for block in blocks(document)
    if block.language in {"", "sh", "bash", "shell", "console"}
]


def each(chosen: list[Block]) -> pytest.MarkDecorator:
    names = [f"{block.document.relative_to(ROOT)} line {block.line}" for block in chosen]
    return pytest.mark.parametrize("block", chosen, ids=names)


def test_there_is_a_readme() -> None:
    assert README.exists(), "README.md is missing: the first page of the project, with snippets for these tests"
    assert any(block.document == README for block in PYTHON), "README.md shows no python block"
    assert any(block.document == README for block in SHELL), "README.md shows no command"


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


def commands(text: str) -> list[list[str]]:
    """Modules of this repository that a block runs, each with its arguments."""
    text = re.sub(r" *\\\n *", " ", text)
    found = re.findall(r"^(?:python3?|torchrun) (?:.*? )?-m ((?:bench|models|vqkernels)\..*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in found]


class Taken(Exception):
    """A command line was parsed, and nothing was run."""


def take_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands parse their arguments and go no further."""
    parse, cli = argparse.ArgumentParser.parse_args, tyro.cli

    def parsed(parser: argparse.ArgumentParser, arguments: Any = None, namespace: Any = None) -> None:
        parse(parser, arguments, namespace)
        raise Taken

    def built(function: Callable[..., Any], **options: Any) -> None:
        @functools.wraps(function)
        def nothing(*args: Any, **kwargs: Any) -> None: ...

        cli(function if inspect.isclass(function) else nothing, **options)
        raise Taken

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.setattr(tyro, "cli", built)


def run_command(line: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """Exit code of a command whose arguments are parsed only; 0 if they are taken, or if it helps."""
    monkeypatch.setattr(sys, "argv", line)
    try:
        runpy.run_module(line[0], run_name="__main__", alter_sys=True)
    except Taken:
        return 0
    except SystemExit as ended:
        return ended.code
    raise AssertionError(f"{line[0]} parses no arguments")


# lines of other documents are tried by the long suite: parsers of the commands of models/ take their time
LINES = {shlex.join(line): block.document for block in reversed(SHELL) for line in commands(block.text)}
FIRST_READ = {README, *(ROOT / "docs").rglob("*.md")}
again = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")


@again
@pytest.mark.parametrize(
    "line",
    [
        pytest.param(line, marks=() if document in FIRST_READ else pytest.mark.slow)
        for line, document in sorted(LINES.items())
    ],
)
def test_options_are_taken(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take_only(monkeypatch)
    assert run_command(shlex.split(line), monkeypatch) == 0


@again
def test_options_that_are_not_taken_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    take_only(monkeypatch)
    for line in (["vqkernels.info", "--jsom"], ["models.sample", "--no-such-option", "3"]):
        assert run_command(line, monkeypatch) == 2


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
