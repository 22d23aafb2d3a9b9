"""The CUDA lookup on the host: csrc/cuda compiled as C++ against tests/cuda_emulation, called through ctypes."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from vqkernels import NearestCode

ROOT = Path(__file__).parents[2]
EMULATION = ROOT / "tests" / "cuda_emulation"
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
METRIC_CODES = {"l2": 0, "cosine": 1, "dot": 2}
GUARD = 64  # bytes behind every buffer, which must stay as they are
POISON = 0xA5


def compile_emulated(sources: Sequence[Path], output: Path, *flags: str) -> None:
    """Build CUDA or C++ sources for the host; contraction off, as the device's intrinsics do not contract."""
    command = ["c++", "-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas", *flags]
    command += [f"-I{EMULATION}", f"-I{ROOT / 'csrc'}", "-x", "c++", *map(str, sources), "-o", str(output)]
    subprocess.run(command, check=True)


class Buffer:
    """Poisoned memory, aligned as a device allocation is, that notices writes behind its end."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = torch.full((size + 2 * GUARD,), POISON, dtype=torch.uint8)
        self.start = -self.memory.data_ptr() % GUARD
        self.address = self.memory.data_ptr() + self.start

    def read(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        values = self.memory[self.start : self.start + self.size].clone()
        return values.view(dtype).reshape(shape)

    def assert_guard_untouched(self) -> None:
        assert bool((self.memory[self.start + self.size :] == POISON).all()), "written behind the end"


class Emulator:
    """The compiled kernels; ``multiprocessors`` of a call decides how the work is divided, never the result."""

    def __init__(self, folder: Path) -> None:
        path = folder / "nearest_code.so"
        sources = [ROOT / "csrc" / "cuda" / "nearest_code.cu", EMULATION / "entry.cpp"]
        compile_emulated(sources, path, "-shared", "-fPIC")
        library = ctypes.CDLL(str(path))
        size, integer, pointer = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p
        self._workspace_bytes = library.workspace_bytes
        self._workspace_bytes.argtypes = [size] * 4 + [integer]
        self._workspace_bytes.restype = size
        self._nearest_code = library.nearest_code
        self._nearest_code.argtypes = (
            [pointer, integer] * 2 + [size] * 4 + [integer, pointer, integer] + [pointer] * 2
        )
        self._nearest_code.restype = ctypes.c_char_p

    def nearest_code(
        self,
        x: torch.Tensor,  # [N, D] or [N, G, D]
        codebook: torch.Tensor,  # [K, D] or [G, K, D]
        metric: str = "l2",
        *,
        multiprocessors: int = 2,
    ) -> NearestCode:
        grouped = codebook if codebook.dim() == 3 else codebook[None]
        g, k, d = grouped.shape
        n = x.numel() // (g * d)
        workspace = Buffer(self._workspace_bytes(n, g, k, d, multiprocessors))
        indices, distance = Buffer(8 * n * g), Buffer(4 * n * g)
        error = self._nearest_code(
            x.contiguous().data_ptr(),
            DTYPE_CODES[x.dtype],
            grouped.contiguous().data_ptr(),
            DTYPE_CODES[codebook.dtype],
            n,
            g,
            k,
            d,
            METRIC_CODES[metric],
            workspace.address,
            multiprocessors,
            indices.address,
            distance.address,
        )
        assert error is None, error
        for buffer in (workspace, indices, distance):
            buffer.assert_guard_untouched()
        return NearestCode(indices.read(torch.int64, *x.shape[:-1]), distance.read(torch.float32, *x.shape[:-1]))
