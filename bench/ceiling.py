"""What the machine can do at most, measured in the run it is compared with."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

_COPY = 1 << 28  # bytes, several times the second level cache of a GPU
_SIDE = 8192  # of the matrices multiplied on a GPU
_GPU_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}


@dataclass(frozen=True)
class Ceiling:
    """Rates of this moment."""

    flops: dict[str, float]  # arithmetic -> operations per second
    source: str  # how they were measured
    bytes: float  # per second, read and written by a copy
    exps: float | None = None  # per second, in registers; None: not measured


def middle(ceilings: list[Ceiling]) -> Ceiling:
    """The median of several measurements."""
    flops = {unit: median(c.flops[unit] for c in ceilings) for unit in ceilings[0].flops}
    exps = [c.exps for c in ceilings if c.exps is not None]
    return Ceiling(flops, ceilings[0].source, median(c.bytes for c in ceilings), median(exps) if exps else None)


def cpu_ceiling(threads: int, seconds: float) -> Ceiling:
    """Rates of fused multiply-adds, of the matrix unit's bfloat16 products and of those of integers if the lookup has
    a use for them, of the kernels' own exponential, and copy bandwidth."""
    kernels = extension()
    exps = None
    if kernels is not None:
        flops, source = {"fp32": kernels.fma_peak(threads, seconds)}, "FMA"
        exps = kernels.exp_peak(threads, seconds)
        if tiles := kernels.tile_peak(threads, seconds):
            flops["bf16"] = tiles
        for bits in (16, 8):
            if integers := kernels.integer_peak(threads, seconds, bits=bits):
                flops[f"int{bits}"] = integers
    else:
        flops, source = {"fp32": _sgemm_rate(seconds)}, "sgemm, a proxy for FMA"
    source_, target = (torch.zeros(1 << (26 if seconds >= 0.05 else 20)) for _ in range(2))
    copied = 2 * source_.numel() * source_.element_size()
    return Ceiling(flops, source, copied * _rate(lambda: target.copy_(source_), seconds), exps)


def cuda_ceiling(slice_: Callable[[Callable[[], Any], float], list[float]], seconds: float) -> Ceiling:
    """Matrix product rates by arithmetic and copy bandwidth; ``slice_`` times a call on the device."""
    flops = {}
    for unit, dtype in _GPU_DTYPES.items():
        # random data: on zeros the products draw less power and run faster than they ever will
        a, b = (torch.randn(_SIDE, _SIDE, device="cuda").to(dtype) for _ in range(2))
        product = partial(torch.mm, a, b, out=torch.empty_like(a))
        with tf32(unit == "tf32"):
            product()
            flops[unit] = 2 * _SIDE**3 / median(slice_(product, seconds))
    source, target = (torch.empty(_COPY, dtype=torch.uint8, device="cuda").random_() for _ in range(2))
    copied = 2 * _COPY / median(slice_(lambda: target.copy_(source), seconds))
    return Ceiling(flops, f"{_SIDE}^3 matrix products", copied)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let float32 matrix products round their inputs to TF32, or forbid it."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def extension() -> Any:
    """The compiled kernels, asked for what the public functions do not tell: peak and build."""
    return importlib.import_module("vqkernels._C") if importlib.util.find_spec("vqkernels._C") else None


def _sgemm_rate(seconds: float) -> float:
    a, b, c = (torch.ones(1024, 1024) for _ in range(3))
    return 2 * 1024**3 * _rate(lambda: torch.mm(a, b, out=c), seconds)


def _rate(call: Callable[[], Any], seconds: float) -> float:
    call()
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds or not count:
        call()
        count += 1
    return count / elapsed
