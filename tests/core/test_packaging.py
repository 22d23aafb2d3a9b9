"""What is packed, what a package is built of, and what happens where it cannot be.

Oracles: the files of this checkout; a compiler that fails at will.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HAS_COMPILER = shutil.which("c++") is not None
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="the machine has no C++ compiler")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy to build in: what builds leave behind stays out of the checkout."""
    copy = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    for folder in ("csrc", "vqkernels"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    for file in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"):
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


@pytest.mark.slow
@needs_compiler
def test_a_wheel_of_the_source_distribution_has_its_kernels(checkout: Path, tmp_path: Path) -> None:
    source, installed, elsewhere = tmp_path / "source", tmp_path / "installed", tmp_path / "elsewhere"
    with tarfile.open(backend("build_sdist", checkout, tmp_path)) as archive:
        archive.extractall(source, filter="data")
    (unpacked,) = source.iterdir()
    wheel = backend("build_wheel", unpacked, tmp_path, VQKERNELS_BUILD="auto")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    assert len(list(installed.glob("vqkernels/_C.*.so"))) == 1
    assert files(checkout / "vqkernels") <= files(installed / "vqkernels")
    assert not (installed / "csrc").exists()
    elsewhere.mkdir()
    program = """
import sys
sys.path.insert(0, sys.argv[1])
import torch, vqkernels
from vqkernels._core.extension import build_info
print(vqkernels.__file__, build_info()["isa"])
print(vqkernels.nearest_code(torch.tensor([[0.4]]), torch.tensor([[0.0], [1.0]]), backend="cpu").indices.item())
"""
    done = python(program, elsewhere, installed)
    assert done.returncode == 0, done.stderr
    place, index = done.stdout.splitlines()
    assert place.startswith(str(installed))
    assert index == "0"


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
