"""The C++ kernels as another processor runs them: compiled with ``tests/driver`` into a program, which is emulated.

    aarch64  cross-compiled, run by qemu
    x86      AVX-512, VNNI and AMX in terms of AVX2, by SIMDe and ``tests/driver/x86``; all else is native

Inside ``kernels_on(processor)`` the compiled extension of this process is replaced by the program: what the package
asks of its kernels goes through a pipe, and arrays come back. So any test can run on them::

    processor = Processor(X86, compile_driver(X86, folder))
    with kernels_on(processor):
        nearest_code(x, codebook, backend="cpu")

As a plugin of pytest it does that for all tests of a run, up to a hundred times as slow as without:
``EMULATED=x86 PYTHONPATH=tests python -m pytest -n0 -p emulated tests/ops/test_nearest_code_tiles.py``.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from vqkernels._core import extension

ROOT = Path(__file__).resolve().parents[1]
DRIVER = ROOT / "tests" / "driver"
sys.path.insert(0, str(ROOT / "tests" / "ops"))

import variants  # noqa: E402

ERRORS = {1: ValueError, 2: RuntimeError}  # as driver.cpp numbers them


@dataclass(frozen=True, eq=False)
class Machine:
    """What is emulated, and by which tools."""

    name: str
    isas: tuple[str, ...]  # that this machine may lack, the best last
    compiler: list[str]
    options: tuple[str, ...]  # of every file
    emulator: list[str] = field(default_factory=list)
    flags_of: dict[str, tuple[str, ...]] = field(default_factory=dict)  # in the place of ISA_FLAGS of setup.py
    sources: tuple[str, ...] = ()
    link: tuple[str, ...] = ()

    @property
    def flags(self) -> set[str]:
        """What the processor has, as ``variants.ISA_FLAGS`` names it."""
        return set().union(*(variants.ISA_FLAGS[isa] for isa in self.isas))


AARCH64 = Machine(
    name="aarch64",
    isas=("portable", "neon", "neon_int8"),
    compiler=["aarch64-linux-gnu-g++"],
    options=("-DVQK_NEON=1", "-DVQK_NEONDOT=1"),
    emulator=["qemu-aarch64"],
)
_EMULATED = ("-mavx2", "-mfma", "-Wno-psabi", f"-I{DRIVER / 'x86'}")
X86 = Machine(
    name="x86",
    isas=("avxvnni", "avxvnni_int8", "avx512", "avx512vnni", "avx512vnni_int8", "amx", "amx_int8"),
    compiler=shlex.split(os.environ.get("CXX", "")) or ["c++"],
    options=(
        "-O1",  # half the time to compile, of code that no processor is to be fast at
        *("-DVQK_X86=1", "-DVQK_AMX=1", "-DVQK_AMXINT8=1", "-DVQK_AVX512VNNI=1", "-DVQK_AVXVNNI=1"),
        *("-include", str(DRIVER / "x86" / "processor.h")),
    ),
    flags_of=dict.fromkeys(("_avxvnni", "_avx512", "_avx512vnni", "_amx", "_amxint8"), _EMULATED),
    sources=("x86/processor.cpp",),
    link=("-Wl,--wrap=syscall",),
)
MACHINES = {machine.name: machine for machine in (AARCH64, X86)}


def missing_tools(machine: Machine) -> str:
    """The reason of a skip; empty if there is none."""
    tools = [*machine.compiler[:1], *machine.emulator[:1]]
    absent = [tool for tool in tools if shutil.which(tool) is None]
    if machine is X86 and not absent:
        if not variants.ISA_FLAGS["avx2"] <= variants.processor_flags():
            absent.append("AVX2")
        asked = [*machine.compiler, "-xc++", "-fsyntax-only", "-include", "simde/simde-features.h", os.devnull]
        if subprocess.run(asked, capture_output=True).returncode:
            absent.append("SIMDe (libsimde-dev)")
    return f"the machine has no {' and no '.join(absent)}" if absent else ""


def setup_facts() -> dict[str, Any]:
    """The names that setup.py defines: the flags of every file, and those of the files of instruction sets."""
    with (
        mock.patch.dict(os.environ, VQKERNELS_BUILD="none"),
        mock.patch.object(sys, "argv", ["setup.py", "--version"]),
        redirect_stdout(None),
    ):
        return runpy.run_path(str(ROOT / "setup.py"))


def compile_driver(machine: Machine, folder: Path) -> Path:
    """Compile the kernels and the driver into a program that needs no files of its system."""
    facts = setup_facts()
    isa_flags = facts["ISA_FLAGS"] | machine.flags_of
    of_arm = facts["ARM64_ISAS"]
    others = of_arm if machine is X86 else set(isa_flags) - of_arm
    found = sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
    sources = [source for source in found if not source.stem.endswith(tuple(others))]
    sources += [DRIVER / name for name in ("driver.cpp", *machine.sources)]
    command = [*machine.compiler, *facts["FLAGS"], "-Werror", *machine.options, "-DVQK_WITH_CUDA=0"]

    def compile_one(source: Path) -> str:
        target = str(folder / f"{source.name}.o")
        flags = next((flags for suffix, flags in isa_flags.items() if source.stem.endswith(suffix)), [])
        includes = [f"-I{ROOT / 'csrc'}", f"-I{DRIVER}"]
        subprocess.run([*command, *flags, *includes, "-c", str(source), "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    program = folder / "kernels"
    link = [*machine.compiler, "-static", *machine.link, *objects, "-o", str(program), "-pthread"]
    subprocess.run(link, check=True)
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

    def __init__(self, machine: Machine, program: Path, flags: set[str] | None = None) -> None:
        """On a machine that has these flags, all by default."""
        self.machine = machine
        has = machine.flags if flags is None else flags
        self.process = subprocess.Popen(
            [*machine.emulator, str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ
            | {"EMULATED_FLAGS": " ".join(has), "QEMU_CPU": "max" if "asimddp" in has else "cortex-a57"},
        )

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
    name = os.environ.get("EMULATED", "")
    if name not in MACHINES:
        raise SystemExit(f"EMULATED: expected {' or '.join(MACHINES)}, got {name!r}")
    if reason := missing_tools(MACHINES[name]):
        raise SystemExit(reason)
    folder = _whole_run.enter_context(tempfile.TemporaryDirectory())
    processor = Processor(MACHINES[name], compile_driver(MACHINES[name], Path(folder)))
    _whole_run.callback(processor.close)
    _whole_run.enter_context(kernels_on(processor))
    flags = MACHINES[name].flags
    _whole_run.enter_context(mock.patch.object(variants, "processor_flags", return_value=flags))


def pytest_unconfigure() -> None:
    _whole_run.close()
