"""What a GPU would be asked to launch, compiled without one: ``python -m bench.gpu.preflight``.

The launchers run on the processor, before a driver that names an architecture and launches nothing: Triton binds the
arguments of every launch and compiles it as it would there. What the kernels would have written is zero, so results
mean nothing; what fails here would fail there. With ``--pack`` also what the steps of the suite launch at full size,
for bench.gpu.carried to take along.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

import vqkernels
from bench.device import Device, Rehearsal
from bench.gpu import bounds, carried, probes, steps, workout
from bench.gpu.context import Context
from vqkernels.testing import lookup_problem

SHARED_BYTES = {80: 166_912, 90: 232_448, 100: 232_448}  # that one program may have
_MULTIPROCESSORS = 132
_REASONS = ("_device_reasons", "_machine_reasons")  # against launching, of which there are none here
_ALLOCATORS = ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty"))
_PROBES = (probes.launches, probes.updates, probes.entropy, probes.tile_shapes)

Compiled = dict[str, dict[str, Any]]  # name of a kernel -> hash -> what it was compiled to


@contextmanager
def compiling(capability: int) -> Iterator[Compiled]:
    """Launches compile for an architecture instead; what they were compiled to."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    compiled: Compiled = {}
    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        compiled.setdefault(f"{self.fn.__module__}:{self.fn.__name__}", {})[kernel.hash] = kernel
        return kernel

    device = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda _: 0,
    )
    properties = SimpleNamespace(multi_processor_count=_MULTIPROCESSORS)
    with ExitStack() as patches:
        for patch in (
            mock.patch.object(driver, "_active", device),
            mock.patch.object(JITFunction, "run", compile_only),
            *(mock.patch(f"vqkernels._core.triton.{name}", return_value=[]) for name in _REASONS),
            mock.patch("torch.cuda.get_device_capability", return_value=divmod(capability, 10)),
            mock.patch("torch.cuda.get_device_properties", return_value=properties),
            mock.patch("torch.cuda.current_device", return_value=0),
            # an index that nobody wrote is one that may be looked at
            *(mock.patch.object(owner, name, _zeroed(getattr(owner, name))) for owner, name in _ALLOCATORS),
        ):
            patches.enter_context(patch)
        yield compiled


def _zeroed(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def zeroed(*args: Any, **options: Any) -> torch.Tensor:
        return allocate(*args, **options).zero_()

    return zeroed


def compile_bounds() -> None:
    """The sums of the step ``bounds``."""
    for kernel, dims in bounds.KERNELS.values():
        for d in dims:
            kernel(d, torch.device("cpu"))


class _Full(Context):
    """A step at full size that measures nothing: every call is made once."""

    def __init__(self) -> None:
        super().__init__(Path(), Path(), float("inf"))

    @property
    def device(self) -> Device:
        return Rehearsal(threads=1)

    def record(self, name: str, finding: Any) -> None:
        pass

    def time(self, call: Any) -> dict[str, float]:
        call()
        return {"median": float("nan")}

    def require_gpu_backend(self, op: str) -> list[str]:
        return ["triton"]


def compile_steps() -> None:
    """What the steps launch at full size, in the order in which the suite takes them."""
    for op, cases in steps.CASES.items():
        for case in steps.cases_of(op, cases):
            problem = case.inputs(case.sizes, 0)
            next(i for i in case.implementations if i.name == "vqkernels triton").prepare(problem)()
    with mock.patch.object(probes, "captured", lambda call: call):
        for probe in _PROBES:
            probe(_Full())


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
    parser.add_argument(
        "--pack", action="store_true", help=f"what the steps launch, too, into {carried.KERNELS.name}"
    )
    args = parser.parse_args(argv)
    with compiling(args.capability) as compiled, carried.keys() as parts:
        for _, _, task in workout.tasks():
            torch.manual_seed(0)
            task("triton")
        compile_bounds()
        enqueue = enqueue_seconds()
        if args.pack:
            compile_steps()
    kernels = {
        name: {"variants": len(found), "shared_bytes": max(one.metadata.shared for one in found.values())}
        for name, found in compiled.items()
    }
    told: dict[str, Any] = {"kernels": kernels, "enqueue": enqueue}
    if args.pack:
        carried.pack(carried.KERNELS, [one for found in compiled.values() for one in found.values()], parts)
        told["packed"] = {"file": str(carried.KERNELS), "bytes": carried.KERNELS.stat().st_size}
    print(json.dumps(told, indent=1))
    idle = workout.kernels() - set(compiled)
    over = [name for name, one in kernels.items() if one["shared_bytes"] > SHARED_BYTES[args.capability]]
    for name in (
        *(f"{name}: was not launched" for name in idle),
        *(f"{name}: too much shared memory" for name in over),
    ):
        print(name, file=sys.stderr)
    return 1 if idle or over else 0


if __name__ == "__main__":
    sys.exit(main())
