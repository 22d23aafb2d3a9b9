"""The C++ kernels as an AArch64 processor runs them: cross-compiled with ``tests/driver``, emulated by qemu.

Inside ``kernels_on(processor)`` the compiled extension of this process is replaced by the program: what the package
asks of its kernels goes through a pipe, and arrays come back. So any test can run on them::

    processor = Processor(compile_driver(folder))
    with kernels_on(processor):
        nearest_code(x, codebook, backend="cpu")

As a plugin of pytest it does that for all tests of a run, a hundred times as slow as without:
``PYTHONPATH=tests python -m pytest -n0 -p aarch64 tests/ops/test_draw_rows.py``.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import runpy
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from vqkernels._core import extension

ROOT = Path(__file__).resolve().parents[1]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
ERRORS = {1: ValueError, 2: RuntimeError}  # as driver.cpp numbers them


def missing_tools() -> str:
    """The reason of a skip; empty if there is none."""
    absent = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]
    return f"the machine has no {' and no '.join(absent)}" if absent else ""


def setup_facts() -> dict[str, Any]:
    """The names that setup.py defines: the flags of every file, and those of the files of instruction sets."""
    with (
        mock.patch.dict(os.environ, VQKERNELS_BUILD="none"),
        mock.patch.object(sys, "argv", ["setup.py", "--version"]),
        redirect_stdout(None),
    ):
        return runpy.run_path(str(ROOT / "setup.py"))


def compile_driver(folder: Path) -> Path:
    """Compile the kernels and the driver into a program that needs no files of its system."""
    facts = setup_facts()
    found = sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
    others = tuple(set(facts["ISA_FLAGS"]) - {"_neon"})
    sources = [source for source in found if not source.stem.endswith(others)]
    sources.append(ROOT / "tests" / "driver" / "driver.cpp")
    command = [COMPILER, *facts["FLAGS"], "-Werror", "-DVQK_NEON=1", "-DVQK_WITH_CUDA=0"]
    command += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'driver'}"]

    def compile_one(source: Path) -> str:
        target = str(folder / f"{source.name}.o")
        subprocess.run([*command, "-c", str(source), "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    program = folder / "kernels"
    subprocess.run([COMPILER, "-static", *objects, "-o", str(program), "-pthread"], check=True)
    return program


class Pointer(int):
    """An address that knows the array it is of."""

    tensor: torch.Tensor


def pointer(tensor: torch.Tensor) -> Pointer:
    address = Pointer(torch._C.TensorBase.data_ptr(tensor))
    address.tensor = tensor
    return address


class Made(NamedTuple):
    """An object of a class of the extension: what makes it."""

    name: str
    args: tuple[Any, ...]


class Processor:
    """The running program. ``call`` is a call of a function of the extension."""

    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen([EMULATOR, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self) -> None:
        self.process.communicate()

    def call(self, name: str, *args: Any) -> Any:
        arrays: list[torch.Tensor] = []
        request = _text(name) + b"".join(_argument(argument, arrays) for argument in args)
        assert self.process.stdin is not None
        self.process.stdin.write(struct.pack("=Q", len(request)) + request)
        self.process.stdin.flush()
        (status,) = self._read(1)
        said = self._read(*struct.unpack("=I", self._read(4))).decode()
        if status:
            raise ERRORS[status](said)
        for array in arrays:
            ctypes.memmove(pointer(array), self._read(array.nbytes), array.nbytes)
        return json.loads(said)

    def _read(self, size: int) -> bytes:
        assert self.process.stdout is not None
        data = self.process.stdout.read(size)
        assert len(data) == size, f"the program ended: {self.process.wait()}"
        return data

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name[0].isupper():
            return lambda *args: Made(name, args)
        return lambda *args: self.call(name, *args)


def _text(text: str) -> bytes:
    return struct.pack("=I", len(text)) + text.encode()


def _argument(value: Any, arrays: list[torch.Tensor]) -> bytes:
    if isinstance(value, Pointer):
        arrays.append(value.tensor)
        assert value.tensor.is_contiguous()
        return struct.pack("=cQ", b"a", value.tensor.nbytes) + ctypes.string_at(value, value.tensor.nbytes)
    if isinstance(value, int):
        return struct.pack("=cq", b"i", value)
    if isinstance(value, float):
        return struct.pack("=cd", b"d", value)
    if isinstance(value, Made):
        return b"o" + _text(value.name) + b"".join(_argument(argument, arrays) for argument in value.args)
    assert isinstance(value, list), value
    elements = b"".join(_argument(element, arrays) for element in value)
    return struct.pack("=cI", b"l", len(value)) + elements


@contextmanager
def kernels_on(processor: Processor) -> Iterator[None]:
    """What the package asks of its extension, it asks of the processor."""
    with (
        mock.patch.object(extension, "_module", processor),
        mock.patch.object(torch.Tensor, "data_ptr", pointer),
    ):
        yield


_whole_run = ExitStack()


def pytest_configure() -> None:
    if reason := missing_tools():
        raise SystemExit(reason)
    folder = _whole_run.enter_context(tempfile.TemporaryDirectory())
    processor = Processor(compile_driver(Path(folder)))
    _whole_run.callback(processor.close)
    _whole_run.enter_context(kernels_on(processor))
    _whole_run.enter_context(mock.patch.object(platform, "machine", return_value="aarch64"))


def pytest_unconfigure() -> None:
    _whole_run.close()
