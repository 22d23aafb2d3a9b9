"""Imports run one way, and programs outside the package use public names only.

    models, bench -> vqkernels -> nn, kmeans, compat -> distributed -> ops/<op> -> op -> backend -> _core -> _C

Read from the syntax trees, so that an import inside a function counts too.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vqkernels
from vqkernels._core.backend import _MODULES, BACKENDS

ROOT = Path(__file__).parents[2]
RUNTIME_DEPENDENCIES = {"torch", "numpy", "vqkernels"}

# layer -> the layers it may import
ALLOWED = {
    "_core": {"_core", "_C"},
    "kernels": {"_core", "kernels"},
    "backend": {"_core", "op", "kernels"},
    "op": {"_core", "op"},
    "api": {"_core", "op", "api"},
    "distributed": {"_core", "api"},
    "module": {"_core", "api", "distributed", "module"},
    "public": {"_core", "api", "distributed", "module", "onnx"},
    "info": {"_core", "public"},
    "onnx": {"onnx"},
    "testing": {"public", "testing"},
}


def layer(module: str) -> str:
    match module.split(".")[1:]:
        case []:
            return "public"
        case ["ops", _, name] if name in BACKENDS:
            return "backend"
        case ["ops", _, name] if name.startswith("triton_"):
            return "kernels"
        case ["ops", _, "op"]:
            return "op"
        case ["ops", *_]:
            return "api"
        case ["nn" | "kmeans" | "compat", *_]:
            return "module"
        case [name, *_]:
            return name
    raise AssertionError(module)


@functools.cache
def import_nodes(source: str) -> list[ast.AST]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]


def imports(source: str, package: str, modules: set[str]) -> Iterator[str]:
    """Modules that a source text imports; ``from package import name`` is the submodule if there is one."""
    for node in import_nodes(source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            submodules = [f"{base}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else base for name in submodules)


def violations(sources: dict[str, str]) -> list[str]:
    """Imports against the direction, given the source text of every module of the package."""
    found = []
    modules = {*sources, "vqkernels._C"}
    for module, source in sources.items():
        is_package = any(other.startswith(module + ".") for other in sources)
        for target in imports(source, module if is_package else module.rpartition(".")[0], modules):
            top = target.partition(".")[0]
            if top != "vqkernels":
                triton_module = top == "triton" and "triton" in module.rpartition(".")[2]
                onnx_module = top == "onnxscript" and module == "vqkernels.onnx.translations"
                known = {*RUNTIME_DEPENDENCIES, *sys.stdlib_module_names}
                if top not in known and not triton_module and not onnx_module:
                    found.append(f"{module}: {target} is not a runtime dependency")
                continue
            here, there = layer(module), layer(target)
            folder, other_folder = (name.split(".")[2:3] for name in (module, target))
            if there not in ALLOWED[here]:
                found.append(f"{module} ({here}) imports {target} ({there})")
            elif there in {"op", "kernels"} and here in {"backend", "api"} and folder != other_folder:
                found.append(f"{module} imports {target}, the inside of another op")
            elif there == "_C" and module != "vqkernels._core.extension":
                found.append(f"{module} imports {target} past vqkernels._core.extension")
    return found


def package_sources() -> dict[str, str]:
    sources = {}
    for path in sorted((ROOT / "vqkernels").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return sources


def test_imports_run_one_way() -> None:
    assert violations(package_sources()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("vqkernels._core.checks", "from vqkernels.ops.gather_codes import gather_codes"),
        ("vqkernels._core.checks", "import scipy.stats"),
        ("vqkernels._core.checks", "from .. import nn"),
        ("vqkernels.kmeans", "from vqkernels import _C"),
        ("vqkernels.kmeans", "def f():\n    import triton"),
        ("vqkernels.kmeans", "import vqkernels"),
        ("vqkernels.nn.codebook", "from vqkernels.ops.code_stats.op import code_stats_op"),
        ("vqkernels.nn.codebook", "from vqkernels.ops.code_stats import cpu"),
        ("vqkernels.nn.codebook", "from vqkernels.testing import strided"),
        ("vqkernels.ops.code_stats.cpu", "from vqkernels.ops.code_stats.reference import run"),
        ("vqkernels.ops.code_stats.cpu", "from vqkernels.ops.code_stats.api import code_stats"),
        ("vqkernels.ops.code_stats.cpu", "from vqkernels.ops.gather_codes.op import gather_codes_op"),
        ("vqkernels.ops.code_stats.op", "from vqkernels.ops.code_stats import cpu"),
        ("vqkernels.ops.nearest_code.api", "from vqkernels.ops.nearest_code.triton_kernels import coarse"),
        ("vqkernels.ops.code_stats.cpu", "from vqkernels.ops.nearest_code.triton_kernels import coarse"),
        ("vqkernels.ops.code_stats.op", "from . import api"),
        ("vqkernels.ops.code_stats.api", "from vqkernels.ops.gather_codes.op import gather_codes_op"),
        ("vqkernels.ops.code_stats.api", "from vqkernels.nn import Ema"),
        ("vqkernels.testing.budget", "from vqkernels._core.backend import select"),
        ("vqkernels.distributed", "from vqkernels.kmeans import kmeans"),
        ("vqkernels.onnx", "import onnxscript"),
        ("vqkernels.onnx.translations", "from vqkernels.nn import Ema"),
    ],
)
def test_a_wrong_import_is_found(module: str, line: str) -> None:
    sources = package_sources()
    before = violations(sources)
    sources[module] += "\n" + line + "\n"
    assert len(violations(sources)) == len(before) + 1


def test_registered_backends_live_in_their_op() -> None:
    for op, modules in _MODULES.items():
        folder = op.rstrip("_")
        for backend, path in modules.items():
            assert path == f"vqkernels.ops.{folder}.{backend}"
            assert importlib.util.find_spec(path) is not None


def exported(module: str) -> set[str]:
    loaded = importlib.import_module(module)
    return set(getattr(loaded, "__all__", [name for name in vars(loaded) if not name.startswith("_")]))


def private_uses(source: str) -> list[str]:
    """Names of the package that a program outside it must not use."""
    public_modules = {
        name
        for name in ("nn", "kmeans", "compat", "testing", "distributed", "info")
        if importlib.util.find_spec(f"vqkernels.{name}")
    }
    allowed = {"vqkernels": {*vqkernels.__all__, *public_modules}}
    allowed |= {f"vqkernels.{name}": exported(f"vqkernels.{name}") for name in public_modules}
    used: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module.partition(".")[0] == "vqkernels":
                used += [(module, alias.name) for alias in names]
            case ast.Import(names=names):
                targets = [alias.name.rpartition(".") for alias in names]
                used += [(base, name) for base, _, name in targets if base.partition(".")[0] == "vqkernels"]
            case ast.Attribute(value=ast.Name(id="vqkernels"), attr=name):
                used.append(("vqkernels", name))
    return [f"{module}.{name}" for module, name in used if name not in allowed.get(module, set())]


@pytest.mark.parametrize("folder", ["models", "bench"])
def test_programs_use_public_names_only(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"{folder}/ holds no Python file"
    found = {str(path.relative_to(ROOT)): private_uses(path.read_text()) for path in files}
    assert {path: names for path, names in found.items() if names} == {}


# from top to bottom: an import goes to a layer below, or stays in its own
MODEL_LAYERS = (
    "command",
    "claims",
    "report",
    "recipes",
    "evaluation",
    "training",
    "published",
    "tokenizers",
    "priors",
    "networks",
    "losses",
    "metrics",
    "pretrained",
    "data",
    "bottom",
)
BOTTOM = {"errors", "config_json", "environment"}


def model_layer(module: str) -> str:
    parts = module.split(".")
    if len(parts) > 1 and parts[1] in MODEL_LAYERS:
        return parts[1]
    return "bottom" if len(parts) > 1 and parts[1] in BOTTOM else "command"


def model_sources() -> dict[str, str]:
    sources = {}
    for path in sorted((ROOT / "models").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return sources


def model_violations(sources: dict[str, str]) -> list[str]:
    """Imports of models/ that go up, and circles among modules of one layer."""
    graph: dict[str, set[str]] = {}
    found = []
    for module, source in sources.items():
        is_package = any(other.startswith(module + ".") for other in sources)
        package = module if is_package else module.rpartition(".")[0]
        graph[module] = {name for name in imports(source, package, set(sources)) if name in sources} - {module}
        for target in graph[module]:
            here, there = (MODEL_LAYERS.index(model_layer(name)) for name in (module, target))
            if here > there and target != "models":
                found.append(f"{module} imports {target}, a layer above")
    order = graphlib.TopologicalSorter(graph)
    try:
        order.prepare()
    except graphlib.CycleError as error:
        found.append(f"a circle: {' -> '.join(error.args[1])}")
    return found


def test_imports_of_models_run_one_way() -> None:
    assert model_violations(model_sources()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("models.data.folder", "from models.networks.patch import PatchConfig"),
        ("models.networks.patch", "from models.training.config import RunConfig"),
        ("models.training.engine", "def f():\n    from models.recipes import TOKENIZERS"),
        ("models.errors", "from models.data.sample import Source"),
        ("models.training.config", "from models.training.engine import train_run"),
    ],
)
def test_a_wrong_import_of_models_is_found(module: str, line: str) -> None:
    sources = model_sources()
    sources[module] += "\n" + line + "\n"
    assert len(model_violations(sources)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from vqkernels._core.backend import select",
        "import vqkernels.ops.nearest_code",
        "from vqkernels.ops.nearest_code.op import nearest_code_op",
        "from vqkernels import _core",
        "from vqkernels.nn import _private",
        "import vqkernels\nvqkernels.ops",
        "def f():\n    import vqkernels\n    return vqkernels._core.extension",
    ],
)
def test_a_private_use_is_found(source: str) -> None:
    assert len(private_uses(source)) == 1


def test_public_uses_are_accepted() -> None:
    source = "import vqkernels\nfrom vqkernels.testing import strided\nvqkernels.nearest_code, vqkernels.nn.Ema"
    assert private_uses(source) == []


def test_the_core_is_framework_free() -> None:
    """Only the binding file knows Python, and nothing knows torch."""
    files = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".inl", ".cpp", ".cu", ".cuh"}]
    assert files
    for path in files:
        included = re.findall(r'#\s*include\s*[<"]([^">]+)[">]', path.read_text())
        foreign = [name for name in included if re.match(r"(torch|ATen|c10|pybind11|Python\.h|numpy)", name)]
        if path.name == "bindings.cpp":
            foreign = [name for name in foreign if not name.startswith("pybind11")]
        assert foreign == [], path.name
