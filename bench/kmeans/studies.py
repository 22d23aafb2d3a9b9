"""What ``vqkernels/kmeans/README.md`` says of seeding, bounds, memory, balance: ``python -m bench.kmeans.studies``.

Seconds are of processor time; those in the README of one thread with AVX-512: ``VQKERNELS_ISA=avx512``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from unittest.mock import patch

import torch

import vqkernels
from bench.kmeans.cases import low_rank, mixture, photos
from bench.kmeans.problem import ClusterProblem
from vqkernels.testing import peak_memory_growth

INITS = ("k-means++", "hierarchical", "random")
_ROWS = 1024  # of which every distance to a centroid is looked at
_GROUP = 16  # centroids
_BOUNDS = "VQKERNELS_BOUNDS_MIB"

Inputs = Callable[[Mapping[str, int], int], ClusterProblem]


def seeding(n: int, k: int, d: int, iterations: int) -> Iterator[str]:
    """Seconds of a pass and of each way to start; the inertia some iterations later, of that of ``random``."""
    x, start, _ = mixture({"N": n, "K": k, "D": d, "I": iterations}, 0)
    pass_seconds = _seconds(lambda: vqkernels.kmeans(x, k, init=start, max_iter=0))
    yield f"{n} x {d}, K = {k}: a pass {pass_seconds:.3g} s"
    inertia = {}
    for init in INITS:
        seconds = _seconds(lambda init=init: vqkernels.kmeans(x, k, init=init, max_iter=0))
        yield f"  {init}: {max(0.0, seconds - pass_seconds):.3g} s"
        if iterations:
            inertia[init] = vqkernels.kmeans(x, k, init=init, max_iter=iterations, tol=0.0).inertia
    for init, value in inertia.items():
        share = value / inertia["random"]
        yield f"  inertia after {iterations} iterations from {init}: {share:.3f} of that from random"


def bounds(inputs: Inputs, n: int, k: int, d: int, iteration: int, run: int = 25) -> Iterator[str]:
    """What bounds on distances could spare in an iteration, and what those of groups spare in a run."""
    x, start, _ = inputs({"N": n, "K": k, "D": d, "I": iteration}, 0)
    before = vqkernels.kmeans(x, k, init=start, max_iter=iteration - 1, tol=0.0).centroids
    after = vqkernels.kmeans(x, k, init=before, max_iter=1, tol=0.0).centroids
    shift = (after - before).norm(dim=1)  # [K]
    indices, distance = vqkernels.top_codes(x, before, 2)
    nearest, second = distance.sqrt().unbind(1)
    gap = second - nearest
    spared = nearest + shift[indices[:, 0]] <= second - shift.max()
    rows, own = x[:_ROWS], indices[:_ROWS, 0]
    apart = torch.cdist(before[own], before)  # [n, K]
    far = (rows - before[own]).norm(dim=1, keepdim=True)
    # Exponion: those within twice the distance and the way to the nearest other centroid
    other = apart.scatter(1, own[:, None], torch.inf).amin(dim=1)
    ball = apart <= 2 * far + other[:, None]
    # Yinyang: a bound for each group of centroids, here as tight as can be
    groups = vqkernels.kmeans(before, max(1, k // _GROUP), max_iter=5).centroids
    group = vqkernels.nearest_code(before, groups).indices
    others = torch.cdist(rows, before).scatter(1, own[:, None], torch.inf)
    least = torch.full((len(rows), len(groups)), torch.inf).scatter_reduce(1, group.expand_as(others), others, "amin")
    moves = torch.zeros(len(groups)).scatter_reduce(0, group, shift, "amax")
    open_ = (least - moves < far + shift[own][:, None])[:, group]
    yield f"{n} {inputs.__name__} x {d}, K = {k}, iteration {iteration}: {_percent(shift > 0)} of the centroids move"
    yield f"  the largest shift is {float(shift.max() / gap.median()):.0f} times the median gap to the second nearest"
    yield f"  {_percent(shift > gap.median() / 10)} of the centroids move by more than a tenth of that gap"
    yield f"  Hamerly's bound spares {_percent(spared)} of the rows"
    yield f"  Exponion's ball around a centroid holds {_percent(ball)} of the others"
    yield f"  Yinyang's bounds of {len(groups)} groups leave {_percent(open_)} of the pairs"

    def fit() -> None:
        vqkernels.kmeans(x, k, init=start, max_iter=run, tol=0.0)

    seconds = _seconds(fit)
    with patch.dict(os.environ, {_BOUNDS: "0"}):
        without = _seconds(fit)
    yield f"  {run} iterations take {seconds:.3g} s, without bounds {without:.3g} s"


_MEMORY = """
import numpy, torch, vqkernels
torch.set_num_threads({threads})
path = {path!r}
def run(n, k):
    rows = numpy.lib.format.open_memmap(path, mode="w+", dtype="float32", shape=(n, {d}))
    for start in range(0, n, 10000):
        part = rows[start : start + 10000]
        part[:] = numpy.random.default_rng(start).standard_normal(part.shape)
    rows.flush()
    del rows, part
    init = torch.randn(k, {d})
    return lambda: vqkernels.kmeans(numpy.load(path, mmap_mode="r"), k, init=init, max_iter=0)
run(20000, 100)()
measured = run({n}, {k})
"""


def memory(n: int, k: int, d: int) -> Iterator[str]:
    """What a pass over rows on disk adds to a process."""
    with tempfile.TemporaryDirectory(prefix="vqkernels-bench-") as folder:
        setup = _MEMORY.format(n=n, k=k, d=d, threads=torch.get_num_threads(), path=f"{folder}/rows.npy")
        growth = peak_memory_growth(setup, "measured()")
    yield f"a pass over {n} x {d} in a memmap, K = {k}: {growth / 1e6:.1f} MB"


def balanced(n: int, k: int, d: int, iterations: int) -> Iterator[str]:
    """Seconds of a fit with clusters of one size on patches of photographs, and what it comes to."""
    x, _, _ = photos({"N": n, "K": k, "D": d, "I": iterations}, 0)
    began, busy = time.perf_counter(), time.process_time()
    result = vqkernels.kmeans(x, k, max_share=1.0, max_iter=iterations)
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    yield f"{n} patches x {d}, K = {k}: {result.iterations} iterations in {seconds:.3g} s, {busy:.3g} s of processors"
    yield f"  sizes {int(result.count.min())} to {int(result.count.max())}, inertia {result.inertia:.6g}"
    free = vqkernels.kmeans(x, k, max_iter=iterations)
    yield f"  without a bound sizes {int(free.count.min())} to {int(free.count.max())}, inertia {free.inertia:.6g}"


def _seconds(call: Callable[[], object]) -> float:
    """Of the processor, so that what else it does does not count."""
    began = time.process_time()
    call()
    return time.process_time() - began


def _percent(which: torch.Tensor) -> str:
    return f"{100 * float(which.double().mean()):.0f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=("seeding", "bounds", "memory", "balanced"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    studies = {
        "seeding": (seeding(200_000, 50_000, 8, 5), seeding(2_000_000, 100_000, 32, 0)),
        "bounds": (
            bounds(photos, 100_000, 1000, 64, 9),
            bounds(photos, 100_000, 10_000, 16, 9),
            bounds(low_rank, 100_000, 1000, 128, 9),
            bounds(low_rank, 50_000, 4096, 512, 4),
        ),
        "memory": (memory(2_000_000, 100_000, 32),),
        "balanced": (balanced(100_000, 1000, 16, 25), balanced(100_000, 1000, 64, 25)),
    }
    for study in studies[args.study]:
        for line in study:
            print(line, flush=True)


if __name__ == "__main__":
    main()
