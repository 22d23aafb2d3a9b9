"""Measurements that settle questions of kernel design, one function per question."""

from __future__ import annotations

import importlib.util
import itertools
import re
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import vqkernels
from bench.case import needs_cuda
from bench.gpu import internals
from bench.gpu.context import Context, Unavailable
from bench.ours import backend_obstacle
from bench.run import last_line
from vqkernels.testing import LookupProblem, lookup_problem

TILE_SHAPES = tuple(itertools.product((64, 128, 256), (128, 256), (4, 8), (3,)))
TILE_DIMS = (8, 32, 64, 256)  # one of every row of the launch table, and a narrower one
_WARPS = 4
_ENTROPY = "soft_assignment_entropy"


def instruction_rates(context: Context) -> None:
    """How many three-input integer minima, float minima and exponentials per second?"""
    if obstacle := backend_obstacle("nearest_code", "triton"):
        raise Unavailable(f"Triton kernels cannot run here: {obstacle}")
    from bench.gpu import kernels

    block, programs, rounds = (64, 2, 3) if context.smoke else (1024, 8 * _multiprocessors(), 4096)
    out = context.device.place((torch.empty(programs * block),))[0]
    for name, kernel, constants, counted in (
        ("integer minimum", kernels.min_rate, {"INTEGER": True}, kernels.MIN_INPUTS),
        ("float minimum", kernels.min_rate, {"INTEGER": False}, kernels.MIN_INPUTS),
        ("exponential", kernels.exp_rate, {}, kernels.EXPONENTIALS),
    ):
        launch = partial(kernel[(programs,)], out, rounds, 0.5, **constants, BLOCK=block, num_warps=_WARPS)
        compiled = launch()
        timing = context.time(launch)
        rate = counted * block * programs * rounds / timing["median"]
        context.record(name, {"per second": rate, "timing": timing, "instructions": _instructions(compiled)})
    context.record("device after", context.device.state())


def _multiprocessors() -> int:
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


def _instructions(compiled: Any) -> dict[str, int]:
    """The commonest instructions of a kernel; none in the interpreter."""
    sass = "" if compiled is None else compiled.asm["sass"]
    return dict(Counter(re.findall(r"\t(?:@!?U?P\d+ )?([A-Z][A-Z0-9_]{2,})", sass)).most_common(12))


def launches(context: Context) -> None:
    """How long the host takes to enqueue a call, against how long the device takes to run it?"""
    backends = context.require_gpu_backend("nearest_code")
    for n, k, d in ((8192, 8192, 8), (65536, 8192, 8), (65536, 16384, 64)):
        problem = _problem(context, n, k, d)
        calls: dict[str, Callable[[], Any]] = {
            f"lookup {backend}": partial(vqkernels.nearest_code, *problem, backend=backend) for backend in backends
        }
        indices = vqkernels.nearest_code(*problem).indices
        calls["code_stats triton"] = partial(vqkernels.code_stats, problem.x, indices, k, backend="triton")
        for name, call in calls.items():
            call()
            enqueue = min(_host_seconds(call) for _ in range(1 if context.smoke else 20))
            # replayed, nothing is left to the host
            device = context.time(call if context.smoke else captured(call))
            finding = {"enqueue seconds": enqueue, "device seconds": device, "as called": context.time(call)}
            context.record(f"N={n} K={k} D={d} {name}", finding)
        if context.smoke:
            return


def _host_seconds(call: Callable[[], Any]) -> float:
    """Until the call returns, with nothing before it on the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def tile_shapes(context: Context) -> None:
    """Which shape of a program is fastest, and where the second level cache limits."""
    context.require_gpu_backend("nearest_code")
    context.record("BLOCK_N = 192", {"not available": "tiles of Triton are powers of two"})
    for d in (8,) if context.smoke else TILE_DIMS:
        problem = _problem(context, 65536, 16384, d)
        expected = vqkernels.nearest_code(*problem).indices
        for shape in TILE_SHAPES[:1] if context.smoke else TILE_SHAPES:
            with internals.tiles(*shape):
                context.record(f"D={d} {shape}", {"shape": shape, **_timed_lookup(context, problem, expected)})


def split_or_single(context: Context) -> None:
    """Pairs of halves, which decide almost every vector, or single halves and more to decide afterwards?"""
    context.require_gpu_backend("nearest_code")
    for d, k in itertools.product((4, 8, 16, 32), (16384, 100_000)):
        if context.smoke and (d, k) != (8, 16384):
            continue
        problem = _problem(context, 65536, k, d)
        expected = vqkernels.nearest_code(*problem).indices
        for count in (1, 3):
            with internals.pieces(count):
                context.record(f"D={d} K={k} pieces={count}", _timed_lookup(context, problem, expected))


def _timed_lookup(context: Context, problem: LookupProblem, expected: torch.Tensor) -> dict[str, Any]:
    """Time of the Triton lookup as it is set up now, or what became of it."""
    call = partial(vqkernels.nearest_code, *problem, backend="triton")
    try:
        same = torch.equal(call().indices, expected)
    except Exception as error:
        # a shape that does not fit into shared memory is a finding; the next one may fit
        return {"failed": last_line(error)}
    return {"same indices": same, "timing": context.time(call)}


def _problem(context: Context, n: int, k: int, d: int) -> LookupProblem:
    n, k = (50, 301) if context.smoke else (n, k)
    placed: LookupProblem = context.device.place(lookup_problem("gaussian", n, k, d))
    return placed


def updates(context: Context) -> None:
    """Sums per code, under uniform and Zipf usage and when one code takes everything, against the bytes to move."""
    n, k = (200, 301) if context.smoke else (1 << 20, 100_000)
    backends: list[str] = []
    try:
        backends = context.require_gpu_backend("code_stats")
    except Unavailable as reason:
        context.record("vqkernels.code_stats", {"not available": str(reason)})
    for d, law in itertools.product((8, 64), ("uniform", "zipf", "one code")):
        x, indices = context.device.place((torch.randn(n, d), usage(law, n, k)))
        calls: dict[str, Callable[[], torch.Tensor]] = {"torch index_add_": partial(_index_add, x, indices, k)}
        for name in backends:
            for deterministic in (True, False):
                stats = partial(vqkernels.code_stats, x, indices, k, deterministic=deterministic, backend=name)
                calls[f"{name} deterministic={deterministic}"] = lambda stats=stats: stats().total  # type: ignore[misc]
        if not needs_cuda("") and importlib.util.find_spec("flash_kmeans"):
            calls["flash-kmeans sorted"] = partial(_flash_update, x, indices, k)
        # vectors and indices are read, sums and counts written
        least = 4 * n * d + 8 * n + 4 * k * (d + 1)
        # a sum of n terms errs by less than n units in the last place of the sum of magnitudes
        truth = _index_add(x.double(), indices, k)
        budget = n * 2.0**-24 * _index_add(x.double().abs(), indices, k)
        for name, call in calls.items():
            within = bool(((call().double() - truth).abs() <= budget).all())
            timing = context.time(call)
            finding = {"within rounding": within, "timing": timing, "bytes per second": least / timing["median"]}
            context.record(f"D={d} {law} {name}", finding)


def usage(kind: str, n: int, k: int) -> torch.Tensor:  # [N] int64
    generator = torch.Generator().manual_seed(0)
    if kind == "one code":
        return torch.full((n,), k // 2)
    if kind == "uniform":
        return torch.randint(k, (n,), generator=generator)
    # the r-th most used code is used 1/r as often as the first, and frequent codes lie anywhere
    cumulative = (1 / torch.arange(1, k + 1, dtype=torch.float64)).cumsum(0)
    drawn = torch.rand(n, generator=generator, dtype=torch.float64) * cumulative[-1]
    return torch.randperm(k, generator=generator)[torch.searchsorted(cumulative, drawn).clamp_(max=k - 1)]


def _index_add(x: torch.Tensor, indices: torch.Tensor, k: int) -> torch.Tensor:  # [K, D]
    return x.new_zeros(k, x.shape[1]).index_add_(0, indices, x)


def _flash_update(x: torch.Tensor, indices: torch.Tensor, k: int) -> torch.Tensor:  # [K, D]
    from flash_kmeans import triton_centroid_update_sorted_euclid

    total, count = x.new_zeros(1, k, x.shape[1]), x.new_zeros(1, k, dtype=torch.int32)
    triton_centroid_update_sorted_euclid(
        x[None], indices[None], total, centroid_sums=total, centroid_cnts=count, calculate_new=False
    )
    return total[0]


def entropy(context: Context) -> None:
    """Is the soft assignment entropy bound by exponentials, and how many lookups does it cost?"""
    context.require_gpu_backend(_ENTROPY)
    loss: Callable[..., Any] = vars(vqkernels)[_ENTROPY]  # by name: it may not exist
    for d, k in ((8, 16384), (32, 16384), (256, 1024)):
        problem = _problem(context, 65536, k, d)
        x, codebook = (tensor.requires_grad_() for tensor in problem)

        def forward(x: torch.Tensor = x, codebook: torch.Tensor = codebook) -> torch.Tensor:
            entropy = loss(x, codebook, temperature=1.0)
            total: torch.Tensor = entropy.sample - entropy.usage
            return total

        def both(forward: Callable[[], torch.Tensor] = forward) -> None:
            forward().backward()

        lookup = partial(vqkernels.nearest_code, x, codebook)
        finding = {}
        for name, call in (("lookup", lookup), ("forward", forward), ("forward and backward", both)):
            call()
            finding[name] = context.time(call)
        context.record(f"D={d} K={k}", finding)
        if context.smoke:
            return
