"""What is packed, what it is built of, what it does where it is installed, and what happens where it cannot be built.

Oracles: the files of this checkout; the start page, followed as written; a compiler that fails at will.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from documents import blocks

import vqkernels

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "SECURITY.md")
HAS_COMPILER = shutil.which("c++") is not None
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="the machine has no C++ compiler")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy to build in: what builds leave behind stays out of the checkout."""
    copy = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    for folder in ("csrc", "vqkernels"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    for file in ("setup.py", "pyproject.toml", *DOCUMENTS):
        shutil.copy(ROOT / file, copy / file)
    return copy


def python(program: str, folder: Path, *args: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, args)]
    return subprocess.run(command, cwd=folder, env=os.environ | variables, capture_output=True, text=True)


def backend(step: str, folder: Path, out: Path, **variables: str) -> Path:
    """The file that a step of the build backend, ``build_sdist`` or ``build_wheel``, makes of a folder."""
    program = f"import sys; from setuptools import build_meta; print('made', build_meta.{step}(sys.argv[1]))"
    done = python(program, folder, out, **variables)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1].removeprefix("made ")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_source_distribution_has_all_that_a_build_reads(checkout: Path, tmp_path: Path) -> None:
    wanted = files(checkout)
    with tarfile.open(backend("build_sdist", checkout, tmp_path, VQKERNELS_BUILD="none")) as archive:
        packed = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert sorted(wanted - packed) == []
    made = {file for file in packed - wanted if not file.startswith("vqkernels.egg-info/")}
    assert made == {"PKG-INFO", "setup.cfg"}
    # the copy has all there is, too
    for suffix in ("cpp", "h", "inl", "cu", "cuh"):
        assert {f"csrc/{file}" for file in files(ROOT / "csrc") if file.endswith(f".{suffix}")} <= packed


def test_the_version_is_the_same_wherever_it_is_said() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == vqkernels.__version__
    newest = (ROOT / "CHANGELOG.md").read_text().partition("\n## ")[2].split()[0]
    assert newest == vqkernels.__version__


@pytest.mark.slow
@needs_compiler
def test_a_wheel_of_the_source_distribution_has_its_kernels(checkout: Path, tmp_path: Path) -> None:
    """Built of the packed sources, installed where there is no checkout, and tried as the start page says."""
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    with tarfile.open(backend("build_sdist", checkout, tmp_path)) as archive:
        archive.extractall(source, filter="data")
    (unpacked,) = source.iterdir()
    wheel = backend("build_wheel", unpacked, tmp_path, VQKERNELS_BUILD="auto")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    assert {f"vqkernels/{file}" for file in files(checkout / "vqkernels")} <= packed
    assert not any(file.startswith("csrc/") for file in packed)
    version = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert wheel.name.startswith(f"vqkernels-{vqkernels.__version__}-{version}-{version}-")

    installed = fresh_environment(tmp_path / "environment")
    run(
        [sys.executable, "-m", "pip", "--python", installed, "install", "-q", "--no-index", "--no-deps", wheel],
        tmp_path,
    )
    elsewhere.mkdir()
    told = run([installed, "-I", "-m", "vqkernels.info"], elsewhere)
    assert f"vqkernels {vqkernels.__version__}" in told
    assert "compiled kernels: CPU only" in told
    where = run([installed, "-I", "-c", "import vqkernels; print(vqkernels.__file__)"], elsewhere)
    assert where.startswith(str(tmp_path))
    snippets = [block.text for block in blocks(ROOT / "docs" / "index.md") if block.language == "python"]
    assert len(snippets) == 2
    for snippet in snippets:
        run(
            [installed, "-I", "-c", f"import vqkernels\nwith vqkernels.use_backend('cpu'):\n{indented(snippet)}"],
            elsewhere,
        )
    assert not list(elsewhere.iterdir())

    if sys.platform == "linux":
        assert "manylinux" in run([sys.executable, "-m", "auditwheel", "show", wheel], tmp_path)


def fresh_environment(folder: Path) -> Path:
    """The interpreter of an environment without the checkout, that has what this one has installed beside it."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    packages = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], folder).strip())
    # a plain path: what links the checkout into this environment is not read
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    nowhere = run(
        [python, "-I", "-c", "import importlib.util as u; print(u.find_spec('vqkernels'), u.find_spec('torch'))"],
        folder,
    )
    assert nowhere.startswith("None ModuleSpec"), nowhere
    return python


def indented(text: str) -> str:
    return "".join(f"    {line}" for line in text.splitlines(keepends=True))


def run(command: list[str | Path], folder: Path) -> str:
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def compiler(folder: Path, script: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def build(folder: Path, mode: str, cxx: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    environment = os.environ | {"VQKERNELS_BUILD": mode, "CXX": cxx} | variables
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


BROKEN = {
    "absent": ("", "No such file or directory"),
    "silent": ("exit 3", "ended with code 3"),
    "talking": (
        "echo; echo 'In file included from x' >&2; echo 'x: error: no licence' >&2; exit 1",
        "x: error: no lic",
    ),
    # what compiles and does not link works no more
    "without a linker": ("echo 'ld: cannot find -lstdc++' >&2; exit 1", "ld: cannot find -lstdc++"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_auto_builds_a_pure_package_where_no_compiler_works(case: str, checkout: Path, tmp_path: Path) -> None:
    script, message = BROKEN[case]
    cxx = compiler(tmp_path, script) if script else str(tmp_path / "nothing")
    done = build(checkout, "auto", cxx)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("vqkernels:")]
    assert "no C++ compiler works" in line
    assert message in line
    assert not list(checkout.rglob("*.so"))


@needs_compiler
@pytest.mark.parametrize(("mode", "driver"), [("auto", "ninja"), ("auto", "pool"), ("cpu", "pool")])
def test_a_build_that_fails_is_an_error(mode: str, driver: str, checkout: Path, tmp_path: Path) -> None:
    """With a compiler that knows programs of nothing, and no kernels."""
    script = """
case "$*" in
*probe.cpp*) exec c++ "$@" ;;
*top_codes*) echo "In file included from a.h:3:" >&2
    echo "top_codes.cpp:7:1: error: no such kernel" >&2
    echo "top_codes.cpp:8:1: error: nor such" >&2
    exit 1 ;;
esac"""
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("c++", "as", "ld", "sh", *(["ninja"] if driver == "ninja" else [])):
        if found := shutil.which(tool, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"):
            (tools / tool).symlink_to(found)
    done = build(checkout, mode, compiler(tmp_path, script), PATH=str(tools), CXXFLAGS="-Wno-error")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: top_codes.cpp:7:1: error: no such kernel"
    assert "no C++ compiler works" not in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(checkout.rglob("*.so"))
    assert (driver == "ninja") == ("FAILED" in done.stdout)
