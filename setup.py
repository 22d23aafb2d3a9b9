"""Builds the compiled extension; every other fact about the package is in pyproject.toml.

``VQKERNELS_BUILD`` decides what is compiled, never the hardware of the build machine:

    auto  (default) the CPU kernels, if a C++ compiler works; otherwise a pure Python package
    cpu   the CPU kernels, or fail
    cuda  the CPU and the CUDA kernels, or fail (CUDA architectures from VQKERNELS_CUDA_ARCHS)
    none  no extension

One list of compile commands serves both drivers: ninja (incremental) if present, a thread pool otherwise.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
X86 = platform.machine().lower() in {"x86_64", "amd64"}
# gcc 12 takes its own intrinsics for reads of uninitialised registers
AVX512_FLAGS = [
    *("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx2", "-mfma"),
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
]
# a translation unit per instruction set; scan_kernel() in csrc/cpu/nearest_code.cpp picks one at run time
ISA_FLAGS = {
    "_amx": [*AVX512_FLAGS, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
    "_avx512": AVX512_FLAGS,
    "_avx2": ["-mavx2", "-mfma"],
}
CUDA_ARCHS = "80;90;100"
CUDA_SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def build_mode() -> str:
    mode = os.environ.get("VQKERNELS_BUILD", "auto")
    if mode not in {"auto", "cpu", "cuda", "none"}:
        raise SystemExit(f"VQKERNELS_BUILD: expected auto, cpu, cuda or none, got {mode!r}")
    if mode == "cuda" and shutil.which("nvcc") is None:
        raise SystemExit("VQKERNELS_BUILD=cuda: expected nvcc on PATH, got none")
    return mode


def sources(cuda: bool, isas: set[str]) -> list[Path]:
    found = [ROOT / "csrc" / "bindings.cpp", *sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]
    left_out = set(ISA_FLAGS) - isas
    found = [s for s in found if not any(s.stem.endswith(suffix) for suffix in left_out)]
    return found + CUDA_SOURCES if cuda else found


def compiled_isas(cxx: list[str]) -> set[str]:
    """Instruction sets of this architecture that the compiler knows; compilers before 2021 lack AMX."""
    if not X86:
        return set()
    knows_amx = subprocess.run([*cxx, *ISA_FLAGS["_amx"], "-xc++", "-fsyntax-only", os.devnull], capture_output=True)
    return set(ISA_FLAGS) if knows_amx.returncode == 0 else set(ISA_FLAGS) - {"_amx"}


class BuildKernels(build_ext):
    def build_extension(self, ext: Extension) -> None:
        mode = build_mode()
        try:
            self._build(ext, cuda=mode == "cuda")
        except (OSError, subprocess.CalledProcessError) as error:
            if mode != "auto":
                raise
            # the package is usable without the extension; `python -m vqkernels.info` reports its absence
            print(f"vqkernels: C++ build failed ({error}); installing without compiled kernels", file=sys.stderr)

    def _build(self, ext: Extension, *, cuda: bool) -> None:
        import pybind11

        cxx = shlex.split(os.environ.get("CXX", "c++"))
        include = [pybind11.get_include(), sysconfig.get_paths()["include"], str(ROOT / "csrc")]
        isas = compiled_isas(cxx)
        defines = [f"-DVQK_WITH_CUDA={int(cuda)}", f"-DVQK_X86={int(X86)}", f"-DVQK_AMX={int('_amx' in isas)}"]
        # contraction off: the canonical distance is defined without fused multiply-add (csrc/README.md)
        flags = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
        flags += defines + [f"-I{path}" for path in include] + shlex.split(os.environ.get("CXXFLAGS", ""))

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
                command = [*cxx, *flags, *isa]
            jobs.append((command, source, target))

        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        link = [*cxx, "-shared", *(str(target) for *_, target in jobs), "-o", str(output), "-pthread"]
        if cuda:
            link += ["-lcudart_static", "-ldl", "-lrt", *cuda_library_flags()]
        link += shlex.split(os.environ.get("LDFLAGS", ""))
        if ninja := shutil.which("ninja"):
            run_ninja(ninja, work, jobs, link, output)
        else:
            run_pool(jobs, link)


def cuda_library_flags() -> list[str]:
    # the nvcc on PATH may be a script elsewhere: only the compiler knows its own home
    told = subprocess.run(["nvcc", "--dryrun", "-c", "x.cu"], check=True, capture_output=True, text=True).stderr
    home = Path(next(line.partition("TOP=")[2] for line in told.splitlines() if "TOP=" in line))
    return [f"-L{path}" for path in (home / "lib64", *home.glob("targets/*/lib")) if path.is_dir()]


def run_ninja(ninja: str, work: Path, jobs: list[tuple[list[str], Path, Path]], link: list[str], out: Path) -> None:
    lines = [
        "rule compile",
        "  command = $cmd -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]
    lines += ["rule link", "  description = link $out", "  command = $cmd", ""]
    for command, source, target in jobs:
        lines += [f"build {target}: compile {source}", f"  cmd = {shlex.join(command)}"]
    lines += [f"build {out}: link {' '.join(str(t) for *_, t in jobs)}", f"  cmd = {shlex.join(link)}", ""]
    (work / "build.ninja").write_text("\n".join(lines))
    subprocess.run([ninja, "-C", str(work)], check=True)


def run_pool(jobs: list[tuple[list[str], Path, Path]], link: list[str]) -> None:
    def compile_one(job: tuple[list[str], Path, Path]) -> None:
        command, source, target = job
        subprocess.run([*command, "-c", str(source), "-o", str(target)], check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, jobs))
    subprocess.run(link, check=True)


mode = build_mode()
extensions = (
    []
    if mode == "none"
    else [Extension("vqkernels._C", [str(s.relative_to(ROOT)) for s in sources(mode == "cuda", set(ISA_FLAGS))])]
)
setup(ext_modules=extensions, cmdclass={"build_ext": BuildKernels})
