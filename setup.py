"""Builds the compiled extension; every other fact about the package is in pyproject.toml.

``VQKERNELS_BUILD`` decides what is compiled, never the hardware of the build machine:

    auto  (default) the CPU kernels, or a pure Python package where no C++ compiler works
    cpu   the CPU kernels
    cuda  the CPU and the CUDA kernels (CUDA architectures from VQKERNELS_CUDA_ARCHS)
    none  no extension

A build that fails is an error in every mode, told by the first message of the compiler.

One list of compile commands serves both drivers: ninja (incremental) if present, a thread pool otherwise.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
MACHINE = platform.machine().lower()
X86, ARM64 = MACHINE in {"x86_64", "amd64"}, MACHINE in {"aarch64", "arm64"}
# contraction off: the canonical distance is defined without fused multiply-add (csrc/README.md)
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
# gcc 12 takes its own intrinsics for reads of uninitialised registers
AVX512_FLAGS = [
    *("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx2", "-mfma"),
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
]
# a translation unit per instruction set; scan_kernel() in csrc/cpu/nearest_code.cpp picks one at run time
AVX2_FLAGS = ["-mavx2", "-mfma"]
ISA_FLAGS = {
    "_amx": [*AVX512_FLAGS, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
    "_amxint8": [*AVX512_FLAGS, "-mamx-tile", "-mamx-int8"],
    "_avx512vnni": [*AVX512_FLAGS, "-mavx512vnni"],
    "_avx512": AVX512_FLAGS,
    "_avxvnni": [*AVX2_FLAGS, "-mavxvnni"],
    "_avx2": AVX2_FLAGS,
    "_neon": [],  # part of every AArch64 processor
    "_neondot": ["-march=armv8.2-a+dotprod"],
}
ARM64_ISAS = {"_neon", "_neondot"}
NEWER_ISAS = {"_amx", "_amxint8", "_avx512vnni", "_avxvnni", "_neondot"}  # than some compilers
CUDA_ARCHS = "80;90;100"
CUDA_SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
CXX = shlex.split(os.environ.get("CXX", "")) or ["c++"]
ERROR = re.compile(r"\berror\b|\bfatal\b|undefined reference|cannot find", re.IGNORECASE)


def build_mode() -> str:
    mode = os.environ.get("VQKERNELS_BUILD", "auto")
    if mode not in {"auto", "cpu", "cuda", "none"}:
        raise SystemExit(f"VQKERNELS_BUILD: expected auto, cpu, cuda or none, got {mode!r}")
    if mode == "cuda" and shutil.which("nvcc") is None:
        raise SystemExit("VQKERNELS_BUILD=cuda: expected nvcc on PATH, got none")
    return mode


def no_compiler() -> str:
    """Why no C++ compiler works, which is to compile and link a program that does nothing; empty if one does."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("int main() { return 0; }\n")
        command = [*CXX, str(source), "-o", str(source.with_suffix(""))]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        except OSError as error:
            return f"{CXX[0]}: {error.strerror}"
    return first_error(CXX[0], done.returncode, done.stdout.splitlines()) if done.returncode else ""


def sources(cuda: bool, isas: set[str]) -> list[Path]:
    found = [ROOT / "csrc" / "bindings.cpp", *sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]
    left_out = set(ISA_FLAGS) - isas
    found = [s for s in found if not any(s.stem.endswith(suffix) for suffix in left_out)]
    return found + CUDA_SOURCES if cuda else found


def compiled_isas() -> set[str]:
    """Instruction sets of this architecture that the compiler knows; compilers before 2021 lack AMX and AVX-VNNI."""
    isas = set(ISA_FLAGS) - ARM64_ISAS if X86 else ARM64_ISAS if ARM64 else set()

    def unknown(isa: str) -> bool:
        command = [*CXX, *ISA_FLAGS[isa], "-xc++", "-fsyntax-only", os.devnull]
        return subprocess.run(command, capture_output=True).returncode != 0

    return isas - set(filter(unknown, isas & NEWER_ISAS))


class BuildKernels(build_ext):
    def build_extension(self, ext: Extension) -> None:
        try:
            self._build(ext, cuda=build_mode() == "cuda")
        except OSError as error:
            raise CompileError(str(error)) from error

    def _build(self, ext: Extension, *, cuda: bool) -> None:
        try:
            import pybind11
        except ImportError as error:
            raise CompileError(f"expected pybind11 in the environment that builds, got none ({error})") from error

        include = [pybind11.get_include(), sysconfig.get_paths()["include"], str(ROOT / "csrc")]
        isas = compiled_isas()
        defines = [f"-DVQK_WITH_CUDA={int(cuda)}", f"-DVQK_X86={int(X86)}"]
        defines += [f"-DVQK{isa.upper()}={int(isa in isas)}" for isa in sorted(NEWER_ISAS | ARM64_ISAS)]
        includes = [f"-I{path}" for path in include]
        flags = [*FLAGS, *defines, *includes, *shlex.split(os.environ.get("CXXFLAGS", ""))]

        work = Path(self.build_temp).resolve()
        work.mkdir(parents=True, exist_ok=True)
        jobs: list[tuple[list[str], Path, Path]] = []
        for source in sources(cuda, isas):
            target = work / f"{source.name}.o"
            if source.suffix == ".cu":
                archs = os.environ.get("VQKERNELS_CUDA_ARCHS", CUDA_ARCHS).split(";")
                gencode = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
                # what newer devices compile for themselves
                gencode.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
                command = [
                    "nvcc",
                    "-std=c++17",
                    "-O3",
                    "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra",
                    *defines,
                    *gencode,
                    f"-I{ROOT / 'csrc'}",
                ]
            else:
                isa = next((f for suffix, f in ISA_FLAGS.items() if source.stem.endswith(suffix)), [])
                command = [*CXX, *flags, *isa]
            jobs.append((command, source, target))

        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        link = [*CXX, "-shared", *(str(target) for *_, target in jobs), "-o", str(output), "-pthread"]
        if cuda:
            link += ["-lcudart_static", "-ldl", "-lrt", *cuda_library_flags()]
        if sys.platform == "darwin":
            link += ["-undefined", "dynamic_lookup"]  # Python's own names, when it loads the module
        link += shlex.split(os.environ.get("LDFLAGS", ""))
        if ninja := shutil.which("ninja"):
            run_ninja(ninja, work, jobs, link, output)
        else:
            run_pool(jobs, link)


def cuda_library_flags() -> list[str]:
    # the nvcc on PATH may be a script elsewhere: only the compiler knows its own home
    told = subprocess.run(["nvcc", "--dryrun", "-c", "x.cu"], capture_output=True, text=True)
    lines = told.stderr.splitlines()
    home = next((Path(line.partition("TOP=")[2]) for line in lines if "TOP=" in line), None)
    if home is None:
        raise CompileError(first_error("nvcc", told.returncode, lines))
    return [f"-L{path}" for path in (home / "lib64", *home.glob("targets/*/lib")) if path.is_dir()]


def run_ninja(ninja: str, work: Path, jobs: list[tuple[list[str], Path, Path]], link: list[str], out: Path) -> None:
    lines = [
        "rule compile",
        "  description = compile $in",
        "  command = $cmd -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]
    lines += ["rule link", "  description = link $out", "  command = $cmd", ""]
    for command, source, target in jobs:
        lines += [f"build {target}: compile {source}", f"  cmd = {shlex.join(command)}"]
    lines += [f"build {out}: link {' '.join(str(t) for *_, t in jobs)}", f"  cmd = {shlex.join(link)}", ""]
    (work / "build.ninja").write_text("\n".join(lines))
    run([ninja, "-C", str(work)])


def run_pool(jobs: list[tuple[list[str], Path, Path]], link: list[str]) -> None:
    def compile_one(job: tuple[list[str], Path, Path]) -> None:
        command, source, target = job
        run([*command, "-c", str(source), "-o", str(target)])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, jobs))
    run(link)


def run(command: list[str]) -> None:
    """Run a tool and pass on what it says; if it fails, raise with its first message."""
    said = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as tool:
        for line in tool.stdout or ():
            sys.stdout.write(line)
            said.append(line)
    if tool.returncode:
        raise CompileError(first_error(command[0], tool.returncode, said))


def first_error(tool: str, code: int, said: list[str]) -> str:
    # ninja repeats the command that failed, with flags that may read like errors
    lines = [line for before, line in pairwise(["", *said]) if not before.startswith("FAILED:")]
    lines = [line for line in lines if line.strip() and not line.startswith(("[", "FAILED:", "ninja:"))]
    errors = [line for line in lines if ERROR.search(line)] or lines
    return " ".join(errors[0].split()) if errors else f"{tool} ended with code {code}"


mode = build_mode()
if mode == "auto" and (reason := no_compiler()):
    # the package is usable without the extension; `python -m vqkernels.info` reports its absence
    print(f"vqkernels: no C++ compiler works ({reason}); a package without compiled kernels", file=sys.stderr)
    mode = "none"
extensions = (
    []
    if mode == "none"
    else [Extension("vqkernels._C", [str(s.relative_to(ROOT)) for s in sources(mode == "cuda", set(ISA_FLAGS))])]
)
setup(ext_modules=extensions, cmdclass={"build_ext": BuildKernels})
