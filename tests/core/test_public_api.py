"""``__all__`` is what the package offers, and every public callable documents itself in full.

Oracle: the signatures themselves. A docstring must name each argument, say what is raised, and show an example.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import vqkernels
import vqkernels.testing

MODULES = (vqkernels, vqkernels.testing)
ROOT = Path(__file__).parents[2]


def public_objects() -> list[tuple[str, Any]]:
    return [(f"{m.__name__}.{name}", getattr(m, name)) for m in MODULES for name in m.__all__]


FUNCTIONS = [(name, thing) for name, thing in public_objects() if inspect.isfunction(thing)]
CLASSES = [(name, thing) for name, thing in public_objects() if inspect.isclass(thing)]
RESULTS = [(name, thing) for name, thing in CLASSES if issubclass(thing, tuple)]
PARTS = [(name, thing) for name, thing in CLASSES if not issubclass(thing, tuple)]

each = pytest.mark.parametrize


def missing_arguments(thing: Callable[..., Any], documentation: str) -> list[str]:
    """Arguments that no entry ``name:`` or ``name, other:`` of the documentation names."""
    heads = re.findall(r"^\s*((?:\*{0,2}\w+, )*\*{0,2}\w+):", documentation, flags=re.MULTILINE)
    named = {name.lstrip("*") for head in heads for name in head.split(", ")}
    return [name for name in inspect.signature(thing).parameters if name not in named and name != "self"]


@each("module", MODULES, ids=lambda module: module.__name__)
def test_all_is_complete(module: ModuleType) -> None:
    things = {name: thing for name, thing in vars(module).items() if not inspect.ismodule(thing)}
    offered = [name for name in things if not name.startswith("_")]
    # what the module loads when it is first asked for, it need not hold yet
    lazy = [name for name in module.__all__ if name not in vars(module)]
    assert sorted(offered + lazy) == sorted(name for name in module.__all__ if name != "__version__")
    assert all(getattr(module, name).__name__ == name for name in lazy)


def test_the_fixed_names_are_there() -> None:
    fixed = {"nearest_code", "quantize", "code_stats", "ema_update_", "kmeans", "VectorQuantizer"}
    assert fixed <= set(vqkernels.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", vqkernels.__version__)


@each(("name", "function"), FUNCTIONS, ids=lambda value: value if isinstance(value, str) else "")
def test_functions_are_documented(name: str, function: Callable[..., Any]) -> None:
    documentation = inspect.getdoc(function) or ""
    summary = documentation.splitlines()[0]
    assert summary.endswith("."), summary
    assert missing_arguments(function, documentation) == []
    assert "Example:" in documentation
    assert ">>>" in documentation
    assert "Raises:" in documentation or name == "vqkernels.testing.strided"  # takes any tensor
    if inspect.signature(function).return_annotation not in ("None", "Iterator[None]"):
        assert "Returns:" in documentation


@each(("name", "function"), FUNCTIONS, ids=lambda value: value if isinstance(value, str) else "")
def test_tensors_are_positional_and_options_are_keywords(name: str, function: Callable[..., Any]) -> None:
    """What has a default and is no tensor comes by keyword; nothing hides behind ``**kwargs``."""
    for parameter in inspect.signature(function).parameters.values():
        assert parameter.kind != inspect.Parameter.VAR_KEYWORD
        assert parameter.annotation is not inspect.Parameter.empty
        optional_positional = (
            parameter.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD
            and parameter.default is not inspect.Parameter.empty
        )
        allowed = {"vqkernels.estimate_gradient": "gradient", "vqkernels.testing.assert_exact_lookup": "metric"}
        assert not optional_positional or allowed.get(name) == parameter.name


@each(("name", "result"), RESULTS, ids=lambda value: value if isinstance(value, str) else "")
def test_results_comment_every_tensor(name: str, result: type) -> None:
    assert inspect.getdoc(result)
    lines = [line for line in inspect.getsource(result).splitlines() if re.match(r"\s+\w+: torch\.Tensor\b", line)]
    assert [line for line in lines if " # " not in line] == []


@each(("name", "part"), PARTS, ids=lambda value: value if isinstance(value, str) else "")
def test_classes_document_every_argument(name: str, part: type) -> None:
    documentation = (inspect.getdoc(part) or "") + "\n" + (inspect.getdoc(part.__init__) or "")
    if part is not vqkernels.Choice:  # made by explain(), not by users
        assert missing_arguments(part, documentation) == []
    if issubclass(part, torch.nn.Module):
        assert ">>>" in documentation


def test_a_missing_argument_is_found() -> None:
    def function(x: int, scale: int, *rest: int) -> None: ...

    assert missing_arguments(function, "Args:\n    x: it.\n    rescale: other.") == ["scale", "rest"]
    assert missing_arguments(function, "Args:\n    x, scale: both.\n    *rest: the rest.") == []


def test_every_op_folder_has_its_readme() -> None:
    folders = [path for path in (ROOT / "vqkernels" / "ops").iterdir() if (path / "api.py").exists()]
    assert len(folders) >= 5
    assert [path.name for path in folders if not (path / "README.md").exists()] == []


def test_the_package_is_typed() -> None:
    assert (ROOT / "vqkernels" / "py.typed").exists()
