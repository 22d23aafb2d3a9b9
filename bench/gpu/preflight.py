"""What a GPU would be asked to launch, compiled without one: ``python -m bench.gpu.preflight``.

The launchers run on the processor, before a driver that names an architecture and launches nothing: Triton binds the
arguments of every launch and compiles it as it would there. What the kernels would have written is left unwritten, so
results mean nothing; what fails here would fail there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

import vqkernels
from bench.gpu import bounds, internals, probes, workout
from vqkernels.testing import lookup_problem

SHARED_BYTES = {80: 166_912, 90: 232_448, 100: 232_448}  # that one program may have
_MULTIPROCESSORS = 132


@dataclass
class Built:
    """What was compiled of one kernel."""

    launches: int = 0
    variants: int = 0
    seconds: float = 0.0  # of compilation
    shared_bytes: int = 0  # the most of any variant


@contextmanager
def compiling(capability: int) -> Iterator[dict[str, Built]]:
    """Launches compile for an architecture instead; what they were, by kernel."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    built: dict[str, Built] = {}
    seen: set[int] = set()
    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        start = time.perf_counter()
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        of_kernel = built.setdefault(f"{self.fn.__module__}:{self.fn.__name__}", Built())
        of_kernel.launches += 1
        if id(kernel) not in seen:
            seen.add(id(kernel))
            of_kernel.variants += 1
            of_kernel.seconds += time.perf_counter() - start
            of_kernel.shared_bytes = max(of_kernel.shared_bytes, kernel.metadata.shared)
        return kernel

    device = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda _: 0,
    )
    properties = SimpleNamespace(multi_processor_count=_MULTIPROCESSORS)
    with (
        mock.patch.object(driver, "_active", device),
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch("vqkernels._core.triton._device_reasons", return_value=[]),
        mock.patch("torch.cuda.get_device_capability", return_value=divmod(capability, 10)),
        mock.patch("torch.cuda.get_device_properties", return_value=properties),
    ):
        yield built


def compile_tiles() -> None:
    """Every shape that the step ``tiles`` tries."""
    for d, shape in itertools.product(probes.TILE_DIMS, probes.TILE_SHAPES):
        with internals.tiles(*shape):
            vqkernels.nearest_code(*lookup_problem("gaussian", 300, 600, d), backend="triton")


def compile_bounds() -> None:
    """The sums of the step ``bounds``."""
    with mock.patch("torch.cuda.is_available", return_value=True):
        for kernel, dims in bounds.KERNELS.values():
            for d in dims:
                kernel(d, torch.device("cpu"))


def enqueue_seconds() -> float:
    """The processor's part of a lookup of few dimensions, but for the launches themselves."""
    call = partial(vqkernels.nearest_code, *lookup_problem("gaussian", 300, 600, 8), backend="triton")
    call()
    return min(_seconds(call) for _ in range(30))


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.preflight", description=__doc__)
    parser.add_argument("--capability", type=int, choices=SHARED_BYTES, default=90)
    parser.add_argument("--tiles", action="store_true", help="the shapes of the step tiles, too")
    args = parser.parse_args(argv)
    with compiling(args.capability) as built:
        for _, _, task in workout.tasks():
            torch.manual_seed(0)
            task("triton")
        compile_bounds()
        if args.tiles:
            compile_tiles()
        enqueue = enqueue_seconds()
    print(json.dumps({"kernels": {name: asdict(one) for name, one in built.items()}, "enqueue": enqueue}, indent=1))
    idle = workout.kernels() - set(built)
    over = [name for name, one in built.items() if one.shared_bytes > SHARED_BYTES[args.capability]]
    for name in (
        *(f"{name}: was not launched" for name in idle),
        *(f"{name}: too much shared memory" for name in over),
    ):
        print(name, file=sys.stderr)
    return 1 if idle or over else 0


if __name__ == "__main__":
    sys.exit(main())
