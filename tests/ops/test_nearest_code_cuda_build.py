"""What nvcc makes of the CUDA lookup, on any machine that has the compiler; no device is needed.

Oracle: the instructions that csrc/README.md promises, counted in the disassembly.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vqkernels.testing.triton_report import KernelReport

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "csrc" / "cuda" / "nearest_code.cu"
ARCHITECTURES = (80, 90, 100)
PAIRS = 8 * 4  # rows of a thread times codes of a step
LARGEST_DIM = 16

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="the machine has no nvcc"),
]


def find_cuobjdump() -> str | None:
    """CUDA's disassembler, from PATH or as it comes with Triton."""
    spec = importlib.util.find_spec("triton")
    shipped = Path(spec.origin or "").parent / "backends" / "nvidia" / "bin" if spec else Path()
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=str(shipped))


def short(mangled: str) -> str:
    """``_ZN3vqk4cuda4scanILi8EE...`` -> ``scan8``."""
    found = re.match(r"_ZN3vqk4cuda\d+([a-z_]+)(?:IL[ib](\d+)E)?", mangled)
    assert found is not None, mangled
    return found[1] + (found[2] or "")


def compile_kernels(architecture: int, folder: Path) -> dict[str, KernelReport]:
    cuobjdump = find_cuobjdump()
    assert cuobjdump is not None, "cuobjdump is neither on PATH nor installed with Triton"
    cubin = folder / f"sm_{architecture}.cubin"
    command = ["nvcc", "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", f"-arch=sm_{architecture}", "-Xptxas=-v"]
    command += ["--keep", f"--keep-dir={folder}", "-cubin", str(SOURCE), "-o", str(cubin)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    usage = {
        short(kernel): (int(registers), int(stores) + int(loads), int(shared or 0))
        for kernel, stores, loads, registers, shared in re.findall(
            r"entry function '(\S+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?"
            r"Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?",
            told,
            flags=re.DOTALL,
        )
    }
    ptx = (folder / f"{SOURCE.stem}.ptx").read_text()
    source = {short(part.partition("(")[0].strip()): part for part in ptx.split(".entry ")[1:]}
    listing = subprocess.run([cuobjdump, "-sass", str(cubin)], check=True, capture_output=True, text=True).stdout
    kernels = {}
    for part in listing.split("Function : ")[1:]:
        kernel = short(part.split()[0])
        code = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(\S[^;]*);", part)
        instructions = tuple((int(address, 16), text) for address, text in code)
        kernels[kernel] = KernelReport(*usage[kernel], source[kernel], instructions)
    return kernels


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda architecture: f"sm_{architecture}")
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, KernelReport]:
    return compile_kernels(request.param, tmp_path_factory.mktemp("cubin"))


def resident_blocks(d: int) -> int:
    """What csrc/cuda/scan.cuh asks of the compiler."""
    return 4 if d <= 4 else 3 if d <= 9 else 2


def test_nothing_is_spilled(kernels: dict[str, KernelReport]) -> None:
    assert {kernel for kernel in kernels if kernel.startswith("scan")} == {f"scan{d + 1}" for d in range(LARGEST_DIM)}
    assert {kernel: found.spill_bytes for kernel, found in kernels.items() if found.spill_bytes} == {}


def test_enough_blocks_are_resident(kernels: dict[str, KernelReport]) -> None:
    for d in range(1, LARGEST_DIM + 1):
        per_warp = -(-kernels[f"scan{d}"].registers * 32 // 256) * 256  # what a warp gets is rounded up
        assert 65536 // (4 * per_warp) >= resident_blocks(d), d


def test_the_scan_loop_is_multiply_adds_and_minima(kernels: dict[str, KernelReport]) -> None:
    """Per pair D multiply-adds and a minimum; per step D + 1 loads of 16 bytes and the loop's own counting."""
    for d in range(1, LARGEST_DIM + 1):
        scan = kernels[f"scan{d}"]
        loop = scan.loop_with("FFMA")
        single, double = scan.count(r"\bFFMA\b", loop), scan.count(r"\bFFMA2\b", loop)
        pairwise, threefold = scan.count(r"\bFMNMX\b", loop), scan.count(r"\bFMNMX3\b", loop)
        loads = scan.count(r"\bLDS\.128\b", loop)
        assert single + 2 * double == PAIRS * d, (d, loop)
        assert pairwise + 2 * threefold == PAIRS, (d, loop)
        assert loads == d + 1, (d, loop)
        assert len(loop) <= single + double + pairwise + threefold + loads + 6, (d, loop)


def test_the_canonical_sum_has_no_fused_multiply_add(kernels: dict[str, KernelReport]) -> None:
    """In PTX: division and square root, single instructions there, become fused steps later, and round correctly."""
    ptx = kernels["decide_open0"].ptx  # the canonical evaluation and nothing else in float64
    assert "fma.rn.f64" not in ptx
    for operation in ("mul.rn.f64", "add.rn.f64", "sub.rn.f64", "div.rn.f64", "sqrt.rn.f64"):
        assert operation in ptx, operation
